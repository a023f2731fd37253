"""The paper's claims, the rule that decides each, and what a study's files say."""
