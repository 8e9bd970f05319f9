CREATE TABLE `alias_versions` (
	`alias` text NOT NULL,
	`version` integer NOT NULL,
	`action` text NOT NULL,
	`model` text,
	`digest` text,
	`origin` integer NOT NULL,
	`parent` integer,
	`evaluation` text,
	`checks` text NOT NULL,
	`key_id` text NOT NULL,
	`created_at` integer NOT NULL,
	PRIMARY KEY(`alias`, `version`)
);
--> statement-breakpoint
CREATE INDEX `alias_models` ON `alias_versions` (`model`);--> statement-breakpoint
CREATE TABLE `evaluations` (
	`seq` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
	`id` text NOT NULL,
	`key_id` text NOT NULL,
	`file` text NOT NULL,
	`report` text NOT NULL,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE UNIQUE INDEX `evaluations_id_unique` ON `evaluations` (`id`);--> statement-breakpoint
CREATE INDEX `evaluations_key` ON `evaluations` (`key_id`,`seq`);