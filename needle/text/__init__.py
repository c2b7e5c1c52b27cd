"""Text and declarations: records, tool schemas, prompt, codecs, grammar. No torch."""
