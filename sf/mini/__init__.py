"""A synthetic world for a laptop: scenes, clips, questions and rows in the real data's layout."""
