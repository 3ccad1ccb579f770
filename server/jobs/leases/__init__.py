"""Jobs of several servers on one database: who runs which job, and how that is known elsewhere."""
