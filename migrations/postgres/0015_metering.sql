-- Running totals of sub-windows and of event variables are rows beside the distinct values of meters (rule C6).
ALTER TABLE meter_member ADD COLUMN data bytea;
COMMENT ON COLUMN meter_member.data IS 'The running total, where the row is one; null for a value that is counted once';
