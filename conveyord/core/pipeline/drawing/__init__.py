"""Plans as pictures: what to show (`picture`), where (`layers`), and one module per format. Text in, text out."""
