"""Reporting: the page that a curator looks at before filtering."""
