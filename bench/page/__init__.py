"""The live page in a real browser: its screenshots (`make screenshots`), and what the browser test drives."""
