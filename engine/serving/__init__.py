"""Answer several prompts with one loaded model, without any protocol.

`scheduler` runs the answers step by step in one thread. `prefixes` keeps the caches of past
conversations, so that the next prompt of each is read only from where it is new. `fair_queue`
decides which prompt is next.
"""
