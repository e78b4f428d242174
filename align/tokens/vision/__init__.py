"""Pictures beside text: columns, pixels, placeholders."""
