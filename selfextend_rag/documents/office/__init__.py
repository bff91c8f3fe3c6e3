"""Formats that are XML in a ZIP archive: those of Office, OpenDocument and EPUB."""
