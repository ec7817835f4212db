"""Dead letters in; out, what they say, and their records sent again."""
