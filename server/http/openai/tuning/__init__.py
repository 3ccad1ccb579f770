"""The files and the fine-tuning jobs of OpenAI's API, mapped on corpora and jobs."""
