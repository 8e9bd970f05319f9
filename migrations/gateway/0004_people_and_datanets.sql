CREATE TABLE `access_requests` (
	`seq` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
	`id` text NOT NULL,
	`datanet_id` text NOT NULL,
	`requested_by` text NOT NULL,
	`organization_id` text,
	`purpose` text NOT NULL,
	`state` text NOT NULL,
	`decided_by` text,
	`decided_at` integer,
	`reason` text,
	`expires_at` integer,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE UNIQUE INDEX `access_requests_id_unique` ON `access_requests` (`id`);--> statement-breakpoint
CREATE INDEX `access_datanet` ON `access_requests` (`datanet_id`,`seq`);--> statement-breakpoint
CREATE INDEX `access_person` ON `access_requests` (`requested_by`,`datanet_id`);--> statement-breakpoint
CREATE INDEX `access_organization` ON `access_requests` (`organization_id`,`datanet_id`);--> statement-breakpoint
CREATE TABLE `adapter_marks` (
	`seq` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
	`adapter` text NOT NULL,
	`job_id` text NOT NULL,
	`datanet_id` text NOT NULL,
	`version` integer NOT NULL,
	`kind` text NOT NULL,
	`rows` integer NOT NULL,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE INDEX `adapter_marks_adapter` ON `adapter_marks` (`adapter`);--> statement-breakpoint
CREATE UNIQUE INDEX `adapter_marks_once` ON `adapter_marks` (`job_id`,`datanet_id`,`kind`,`created_at`);--> statement-breakpoint
CREATE TABLE `contributions` (
	`seq` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
	`id` text NOT NULL,
	`datanet_id` text NOT NULL,
	`contributor` text NOT NULL,
	`key_id` text NOT NULL,
	`filename` text NOT NULL,
	`bytes` integer NOT NULL,
	`sha256` text NOT NULL,
	`options` text NOT NULL,
	`licence` text NOT NULL,
	`state` text NOT NULL,
	`rows` integer DEFAULT 0 NOT NULL,
	`refused` integer DEFAULT 0 NOT NULL,
	`progress` text,
	`problems` text,
	`error` text,
	`created_at` integer NOT NULL,
	`finished_at` integer
);
--> statement-breakpoint
CREATE UNIQUE INDEX `contributions_id_unique` ON `contributions` (`id`);--> statement-breakpoint
CREATE INDEX `contributions_datanet` ON `contributions` (`datanet_id`,`seq`);--> statement-breakpoint
CREATE INDEX `contributions_contributor` ON `contributions` (`contributor`,`created_at`);--> statement-breakpoint
CREATE INDEX `contributions_state` ON `contributions` (`state`);--> statement-breakpoint
CREATE TABLE `datanet_bands` (
	`band` integer NOT NULL,
	`row` integer NOT NULL,
	PRIMARY KEY(`band`, `row`)
);
--> statement-breakpoint
CREATE TABLE `datanet_rows` (
	`seq` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
	`datanet_id` text NOT NULL,
	`contribution_id` text NOT NULL,
	`contributor` text NOT NULL,
	`content` text,
	`size` integer NOT NULL,
	`content_hash` text NOT NULL,
	`generated_by` text,
	`score` integer NOT NULL,
	`reasons` text NOT NULL,
	`near_duplicate_of` integer,
	`state` text NOT NULL,
	`reviewer` text,
	`reviewed_at` integer,
	`state_reason` text,
	`entry` text NOT NULL,
	`leaf_hash` blob NOT NULL,
	`added_in` integer,
	`removed_in` integer,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE UNIQUE INDEX `datanet_rows_content` ON `datanet_rows` (`datanet_id`,`content_hash`);--> statement-breakpoint
CREATE INDEX `datanet_rows_state` ON `datanet_rows` (`datanet_id`,`state`,`seq`);--> statement-breakpoint
CREATE INDEX `datanet_rows_version` ON `datanet_rows` (`datanet_id`,`added_in`,`seq`);--> statement-breakpoint
CREATE INDEX `datanet_rows_contribution` ON `datanet_rows` (`contribution_id`,`seq`);--> statement-breakpoint
CREATE INDEX `datanet_rows_contributor` ON `datanet_rows` (`contributor`,`seq`);--> statement-breakpoint
CREATE TABLE `datanet_signatures` (
	`row` integer PRIMARY KEY NOT NULL,
	`signature` blob NOT NULL
);
--> statement-breakpoint
CREATE TABLE `datanet_versions` (
	`datanet_id` text NOT NULL,
	`number` integer NOT NULL,
	`state` text NOT NULL,
	`cause` text NOT NULL,
	`notes` text NOT NULL,
	`licence` text NOT NULL,
	`terms` text NOT NULL,
	`rows` integer DEFAULT 0 NOT NULL,
	`added` integer DEFAULT 0 NOT NULL,
	`removed` integer DEFAULT 0 NOT NULL,
	`root` text DEFAULT '' NOT NULL,
	`checkpoint` text DEFAULT '' NOT NULL,
	`statistics` text,
	`created_by` text NOT NULL,
	`created_at` integer NOT NULL,
	PRIMARY KEY(`datanet_id`, `number`)
);
--> statement-breakpoint
CREATE TABLE `datanets` (
	`seq` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
	`id` text NOT NULL,
	`owner_user` text,
	`owner_organization` text,
	`name` text NOT NULL,
	`name_key` text NOT NULL,
	`summary` text NOT NULL,
	`description` text NOT NULL,
	`tags` text NOT NULL,
	`kind` text NOT NULL,
	`licence` text NOT NULL,
	`terms` text NOT NULL,
	`visibility` text NOT NULL,
	`state` text NOT NULL,
	`languages` text NOT NULL,
	`version` integer DEFAULT 0 NOT NULL,
	`rows` integer DEFAULT 0 NOT NULL,
	`created_by` text NOT NULL,
	`created_at` integer NOT NULL,
	`updated_at` integer NOT NULL
);
--> statement-breakpoint
CREATE UNIQUE INDEX `datanets_id_unique` ON `datanets` (`id`);--> statement-breakpoint
CREATE UNIQUE INDEX `datanets_name_key_unique` ON `datanets` (`name_key`);--> statement-breakpoint
CREATE INDEX `datanets_owner_user` ON `datanets` (`owner_user`);--> statement-breakpoint
CREATE INDEX `datanets_owner_organization` ON `datanets` (`owner_organization`);--> statement-breakpoint
CREATE INDEX `datanets_visibility` ON `datanets` (`visibility`,`state`,`seq`);--> statement-breakpoint
CREATE TABLE `job_sources` (
	`job_id` text NOT NULL,
	`role` text NOT NULL,
	`position` integer NOT NULL,
	`file_id` text NOT NULL,
	`datanet_id` text,
	`version` integer,
	`root` text,
	`weight` integer NOT NULL,
	`examples` integer,
	`digest` text,
	PRIMARY KEY(`job_id`, `role`, `position`)
);
--> statement-breakpoint
CREATE INDEX `job_sources_datanet` ON `job_sources` (`datanet_id`,`version`);--> statement-breakpoint
CREATE TABLE `licence_acceptances` (
	`datanet_id` text NOT NULL,
	`user_id` text NOT NULL,
	`terms_hash` text NOT NULL,
	`licence` text NOT NULL,
	`accepted_at` integer NOT NULL,
	PRIMARY KEY(`datanet_id`, `user_id`, `terms_hash`)
);
--> statement-breakpoint
CREATE TABLE `audit_log` (
	`seq` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
	`at` integer NOT NULL,
	`action` text NOT NULL,
	`user_id` text,
	`key_id` text,
	`object` text,
	`request_id` text NOT NULL,
	`address` text,
	`detail` text,
	`status` integer
);
--> statement-breakpoint
CREATE INDEX `audit_action` ON `audit_log` (`action`,`seq`);--> statement-breakpoint
CREATE INDEX `audit_user` ON `audit_log` (`user_id`,`seq`);--> statement-breakpoint
CREATE INDEX `audit_object` ON `audit_log` (`object`,`seq`);--> statement-breakpoint
CREATE TABLE `identities` (
	`issuer` text NOT NULL,
	`subject` text NOT NULL,
	`user_id` text NOT NULL,
	`created_at` integer NOT NULL,
	PRIMARY KEY(`issuer`, `subject`)
);
--> statement-breakpoint
CREATE INDEX `identities_user` ON `identities` (`user_id`);--> statement-breakpoint
CREATE TABLE `invitations` (
	`hash` text PRIMARY KEY NOT NULL,
	`user_id` text NOT NULL,
	`created_by` text NOT NULL,
	`created_at` integer NOT NULL,
	`expires_at` integer NOT NULL,
	`used_at` integer
);
--> statement-breakpoint
CREATE INDEX `invitations_user` ON `invitations` (`user_id`);--> statement-breakpoint
CREATE TABLE `login_failures` (
	`subject` text PRIMARY KEY NOT NULL,
	`failures` integer NOT NULL,
	`last_at` integer NOT NULL,
	`blocked_until` integer NOT NULL
);
--> statement-breakpoint
CREATE TABLE `memberships` (
	`organization_id` text NOT NULL,
	`user_id` text NOT NULL,
	`role` text NOT NULL,
	`created_at` integer NOT NULL,
	PRIMARY KEY(`organization_id`, `user_id`)
);
--> statement-breakpoint
CREATE INDEX `memberships_user` ON `memberships` (`user_id`);--> statement-breakpoint
CREATE TABLE `organizations` (
	`seq` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
	`id` text NOT NULL,
	`name` text NOT NULL,
	`name_key` text NOT NULL,
	`created_by` text NOT NULL,
	`created_at` integer NOT NULL
);
--> statement-breakpoint
CREATE UNIQUE INDEX `organizations_id_unique` ON `organizations` (`id`);--> statement-breakpoint
CREATE UNIQUE INDEX `organizations_name_key_unique` ON `organizations` (`name_key`);--> statement-breakpoint
CREATE TABLE `sessions` (
	`id` text PRIMARY KEY NOT NULL,
	`hash` text NOT NULL,
	`user_id` text NOT NULL,
	`method` text NOT NULL,
	`address` text,
	`user_agent` text,
	`created_at` integer NOT NULL,
	`last_seen_at` integer NOT NULL,
	`expires_at` integer NOT NULL,
	`ended_at` integer
);
--> statement-breakpoint
CREATE UNIQUE INDEX `sessions_hash_unique` ON `sessions` (`hash`);--> statement-breakpoint
CREATE INDEX `sessions_user` ON `sessions` (`user_id`,`created_at`);--> statement-breakpoint
CREATE TABLE `users` (
	`seq` integer PRIMARY KEY AUTOINCREMENT NOT NULL,
	`id` text NOT NULL,
	`email` text NOT NULL,
	`name` text NOT NULL,
	`role` text NOT NULL,
	`state` text NOT NULL,
	`password` text,
	`account_key` text NOT NULL,
	`created_at` integer NOT NULL,
	`last_login_at` integer
);
--> statement-breakpoint
CREATE UNIQUE INDEX `users_id_unique` ON `users` (`id`);--> statement-breakpoint
CREATE UNIQUE INDEX `users_email_unique` ON `users` (`email`);--> statement-breakpoint
CREATE UNIQUE INDEX `users_account_key_unique` ON `users` (`account_key`);--> statement-breakpoint
DROP INDEX `evaluations_key`;--> statement-breakpoint
ALTER TABLE `evaluations` ADD `owner` text DEFAULT '' NOT NULL;--> statement-breakpoint
CREATE INDEX `evaluations_owner` ON `evaluations` (`owner`,`seq`);--> statement-breakpoint
DROP INDEX `files_key`;--> statement-breakpoint
ALTER TABLE `files` ADD `owner` text DEFAULT '' NOT NULL;--> statement-breakpoint
CREATE INDEX `files_owner` ON `files` (`owner`,`seq`);--> statement-breakpoint
DROP INDEX `jobs_key`;--> statement-breakpoint
ALTER TABLE `fine_tuning_jobs` ADD `owner` text DEFAULT '' NOT NULL;--> statement-breakpoint
CREATE INDEX `jobs_owner` ON `fine_tuning_jobs` (`owner`,`seq`);--> statement-breakpoint
ALTER TABLE `alias_versions` ADD `owner` text DEFAULT '' NOT NULL;--> statement-breakpoint
ALTER TABLE `keys` ADD `user_id` text;--> statement-breakpoint
CREATE INDEX `keys_user` ON `keys` (`user_id`);