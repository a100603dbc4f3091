"""The Break-for-Make study: a content and a style, learnt apart, become one LoRA."""
