CREATE TABLE `contributed_bytes` (
	`contribution_id` text PRIMARY KEY NOT NULL,
	`contributor` text NOT NULL,
	`bytes` integer NOT NULL,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE INDEX `contributed_bytes_contributor` ON `contributed_bytes` (`contributor`,`created_at`,`bytes`);--> statement-breakpoint
CREATE TABLE `contribution_questions` (
	`contribution_id` text NOT NULL,
	`chunk` integer NOT NULL,
	`chunk_hash` text NOT NULL,
	`pairs` text NOT NULL,
	PRIMARY KEY(`contribution_id`, `chunk`)
);
--> statement-breakpoint
CREATE TABLE `datanet_readings` (
	`datanet_id` text PRIMARY KEY NOT NULL,
	`holder` text NOT NULL,
	`until` integer NOT NULL
);
--> statement-breakpoint
CREATE TABLE `erasures` (
	`id` integer PRIMARY KEY NOT NULL,
	`asked` integer DEFAULT 0 NOT NULL,
	`done` integer DEFAULT 0 NOT NULL
);
--> statement-breakpoint
CREATE TABLE `version_tiles` (
	`datanet_id` text NOT NULL,
	`version` integer NOT NULL,
	`tile` integer NOT NULL,
	`starts` text NOT NULL,
	`hashes` blob NOT NULL,
	PRIMARY KEY(`datanet_id`, `version`, `tile`)
);
--> statement-breakpoint
DROP INDEX `datanets_name_key_unique`;--> statement-breakpoint
CREATE UNIQUE INDEX `datanets_published_name` ON `datanets` (`name_key`) WHERE version > 0;--> statement-breakpoint
CREATE UNIQUE INDEX `datanets_user_name` ON `datanets` (`owner_user`,`name_key`);--> statement-breakpoint
CREATE UNIQUE INDEX `datanets_organization_name` ON `datanets` (`owner_organization`,`name_key`);--> statement-breakpoint
-- What was sent in the last day counts on.
INSERT INTO contributed_bytes (contribution_id, contributor, bytes, created_at)
  SELECT id, contributor, bytes, created_at FROM contributions WHERE created_at > (unixepoch() - 86400) * 1000;
--> statement-breakpoint
-- Where rows came in before, the full-text index may hold words of rows that were erased.
INSERT INTO erasures (id, asked, done) SELECT 1, EXISTS (SELECT 1 FROM contributions), 0;
