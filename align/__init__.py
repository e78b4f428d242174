"""align: preference alignment of language models, centred on the DPO family."""
