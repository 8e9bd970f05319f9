CREATE TABLE `keys` (
	`id` text PRIMARY KEY NOT NULL,
	`name` text NOT NULL,
	`hash` text NOT NULL,
	`hint` text NOT NULL,
	`scopes` text NOT NULL,
	`models` text,
	`requests_per_minute` integer,
	`tokens_per_minute` integer,
	`concurrency` integer,
	`budget_micros` integer,
	`spent_micros` integer DEFAULT 0 NOT NULL,
	`reserved_micros` integer DEFAULT 0 NOT NULL,
	`created_at` integer NOT NULL,
	`expires_at` integer,
	`revoked_at` integer,
	CONSTRAINT "keys_money" CHECK("keys"."spent_micros" >= 0 and "keys"."reserved_micros" >= 0)
);
--> statement-breakpoint
CREATE UNIQUE INDEX `keys_hash_unique` ON `keys` (`hash`);--> statement-breakpoint
CREATE TABLE `reservations` (
	`request_id` text PRIMARY KEY NOT NULL,
	`key_id` text NOT NULL,
	`amount_micros` integer NOT NULL,
	`posted_micros` integer,
	`model` text,
	`prompt_tokens` integer,
	`completion_tokens` integer,
	`state` text NOT NULL,
	`created_at` integer NOT NULL,
	`deadline_at` integer NOT NULL,
	`settled_at` integer,
	CONSTRAINT "reservations_amount" CHECK("reservations"."amount_micros" >= 0)
);
--> statement-breakpoint
CREATE INDEX `reservations_open` ON `reservations` (`state`,`deadline_at`);--> statement-breakpoint
CREATE INDEX `reservations_settled` ON `reservations` (`settled_at`);--> statement-breakpoint
CREATE TABLE `usage_daily` (
	`key_id` text NOT NULL,
	`day` text NOT NULL,
	`model` text NOT NULL,
	`requests` integer DEFAULT 0 NOT NULL,
	`prompt_tokens` integer DEFAULT 0 NOT NULL,
	`completion_tokens` integer DEFAULT 0 NOT NULL,
	`cost_micros` integer DEFAULT 0 NOT NULL,
	PRIMARY KEY(`key_id`, `day`, `model`)
);
