-- A session keeps the plan of the function's query, also one made for a table of a few rows, which reads all of them. By
-- an index, the query reads next to nothing, however large the table has become.
ALTER FUNCTION {guard}() SET enable_seqscan = off;
