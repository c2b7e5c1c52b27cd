"""How good it is: metrics, the evaluator, the leaderboard, paired statistics, studies, reports."""
