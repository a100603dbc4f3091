"""The Break-for-Make study: a content and a style, trained separately, become one LoRA."""
