"""The web page that sampling/app.py serves."""
