"""DualMap beside the routers that people use, live: the same engines, requests and seeds for each."""
