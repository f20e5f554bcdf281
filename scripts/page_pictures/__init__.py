"""Pictures of the web page, for the documents and for the page itself."""
