"""Room for the bodies of requests: how much of it is taken, and by whom."""


class BodyRoom:
    """Counts the bytes of bodies that have come and are not answered yet.

    All of them together have `max_bytes`. One tenant's have at most as much as they leave free, so that whoever fills
    the room leaves room for the next; where nobody says who he is there is but one limit.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._by_tenant: dict[str, int] = {}
        self.held_bytes = 0

    def take(self, tenant: str, num_bytes: int) -> bool:
        """So many more are held; false if they are too many, held though they are until they are given back."""
        self.held_bytes += num_bytes
        if not tenant:
            return self.held_bytes <= self._max_bytes
        ours = self._by_tenant[tenant] = self._by_tenant.get(tenant, 0) + num_bytes
        return ours <= self._max_bytes - self.held_bytes

    def give_back(self, tenant: str, num_bytes: int) -> None:
        """So many are not held any more."""
        self.held_bytes -= num_bytes
        if tenant:
            left = self._by_tenant.get(tenant, 0) - num_bytes
            if left > 0:
                self._by_tenant[tenant] = left
            else:
                self._by_tenant.pop(tenant, None)
