-- Receipts are append-only. REPLACE deletes without firing DELETE triggers (unless recursive_triggers is on, which is per
-- connection), so the INSERT guard itself refuses a row that would collide on any UNIQUE column. A new UNIQUE column must be
-- named here too.
CREATE TRIGGER `receipts_no_gap_no_replace` BEFORE INSERT ON `receipts`
WHEN NEW.leaf_index IS NOT coalesce((SELECT max(leaf_index) FROM receipts), -1) + 1
  OR EXISTS (SELECT 1 FROM receipts WHERE id = NEW.id OR leaf_index = NEW.leaf_index)
BEGIN SELECT RAISE(ABORT, 'receipts are append-only: the next leaf_index and a new id are required'); END;
--> statement-breakpoint
CREATE TRIGGER `receipts_no_update` BEFORE UPDATE ON `receipts`
BEGIN SELECT RAISE(ABORT, 'receipts are append-only: rows never change'); END;
--> statement-breakpoint
CREATE TRIGGER `receipts_no_delete` BEFORE DELETE ON `receipts`
BEGIN SELECT RAISE(ABORT, 'receipts are append-only: rows never go'); END;
--> statement-breakpoint
CREATE TRIGGER `checkpoint_once` BEFORE INSERT ON `checkpoint`
WHEN EXISTS (SELECT 1 FROM checkpoint)
  OR NEW.tree_size IS NOT coalesce((SELECT max(leaf_index) FROM receipts), -1) + 1
BEGIN SELECT RAISE(ABORT, 'the checkpoint exists already, or does not cover all receipts'); END;
--> statement-breakpoint
CREATE TRIGGER `checkpoint_only_grows` BEFORE UPDATE ON `checkpoint`
WHEN NEW.slot IS NOT OLD.slot
  OR NEW.tree_size <= OLD.tree_size
  OR NEW.tree_size IS NOT coalesce((SELECT max(leaf_index) FROM receipts), -1) + 1
BEGIN SELECT RAISE(ABORT, 'the checkpoint can only grow, to cover all receipts'); END;
--> statement-breakpoint
CREATE TRIGGER `checkpoint_no_delete` BEFORE DELETE ON `checkpoint`
BEGIN SELECT RAISE(ABORT, 'the checkpoint can only grow'); END;
