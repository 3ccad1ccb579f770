UPDATE jobs SET error = x'0800', state = 'failed';
