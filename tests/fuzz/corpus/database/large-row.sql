UPDATE jobs SET reason = zeroblob(70000000);
