"""What people and programs read: tables on a terminal, pages, Markdown, JUnit XML, JSON, CSV and Parquet.

Owns: layout and wording. Never: computing a figure that it shows.
"""
