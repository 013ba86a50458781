"""Generated parts of a hand-written page: what stands between two marks is replaced, the rest is left as it is."""

import re
from pathlib import Path


def put(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name -->` and `<!-- end of name -->`; at the end where there are no such marks.

    The page is made if it is not there.
    """
    opening, closing = f"<!-- {name} -->", f"<!-- end of {name} -->"
    block = f"{opening}\n{text}\n{closing}"
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    page, found = re.subn(
        f"{re.escape(opening)}.*?{re.escape(closing)}", lambda _: block, page, count=1, flags=re.DOTALL
    )
    if not found:
        page = f"{page.rstrip()}\n\n{block}\n".lstrip()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
