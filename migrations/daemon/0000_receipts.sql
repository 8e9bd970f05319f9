CREATE TABLE `checkpoint` (
	`slot` integer PRIMARY KEY NOT NULL,
	`tree_size` integer NOT NULL,
	`root_hash` blob NOT NULL,
	`note` text NOT NULL,
	CONSTRAINT "checkpoint_one_row" CHECK("checkpoint"."slot" = 1),
	CONSTRAINT "checkpoint_root_bytes" CHECK(length("checkpoint"."root_hash") = 32)
);
--> statement-breakpoint
CREATE TABLE `receipts` (
	`leaf_index` integer PRIMARY KEY NOT NULL,
	`id` text NOT NULL,
	`entry` text NOT NULL,
	`hashes` blob NOT NULL,
	CONSTRAINT "receipts_entry_bytes" CHECK(length(CAST("receipts"."entry" AS BLOB)) BETWEEN 1 AND 65535),
	CONSTRAINT "receipts_hashes_bytes" CHECK(length("receipts"."hashes") > 0 AND length("receipts"."hashes") % 32 = 0)
);
--> statement-breakpoint
CREATE UNIQUE INDEX `receipts_id_unique` ON `receipts` (`id`);--> statement-breakpoint
CREATE TABLE `space_probe` (
	`slot` integer PRIMARY KEY NOT NULL,
	`filler` blob NOT NULL
);
