"""The paper's Tables 2, 3 and 4 at small scale: arms, trainings, restorations, scores, and what they say."""
