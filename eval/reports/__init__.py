"""What people and programs read: terminal tables (terminal.py) and JSON (document.py).

Owns: layout. Never: computing a figure that it shows.
"""
