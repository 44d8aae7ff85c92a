"""What people read: tables for the console, a spreadsheet, one self-contained page. Imports no torch."""
