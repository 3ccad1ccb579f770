ALTER TABLE aliases RENAME TO kept;
CREATE VIEW aliases AS WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c)
SELECT n AS model, n AS alias, n AS version FROM c;
