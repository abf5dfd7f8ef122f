"""Files on any store: paths and URLs, calls that are tried again, writes that depend on what is there."""
