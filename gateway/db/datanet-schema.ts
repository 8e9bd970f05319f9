/**
 * Tables of Datanets. A row of data is written once; what changes afterwards is its state. Version n of a Datanet is its rows with
 * added_in ≤ n and (removed_in is null or > n), in order of `seq`: so versions share rows, and no version can change.
 * Triggers (0005_people_and_datanets_guards.sql) hold that; the full-text indexes are made there too.
 */
import { sql } from 'drizzle-orm';
import { blob, index, integer, primaryKey, sqliteTable, text, uniqueIndex } from 'drizzle-orm/sqlite-core';

/** As TrainingExample.kind: all rows of a Datanet can be trained on together. */
export const DATANET_KINDS = ['chat', 'completion', 'preference'] as const;
export type DatanetKind = (typeof DATANET_KINDS)[number];

export const datanets = sqliteTable(
  'datanets',
  {
    seq: integer('seq').primaryKey({ autoIncrement: true }),
    id: text('id').notNull().unique(),
    /** Exactly one of the two. */
    ownerUser: text('owner_user'),
    ownerOrganization: text('owner_organization'),
    name: text('name').notNull(),
    /** The name in the form that must be unique, among one owner's Datanets and among published ones: NFKC, case folded, single spaces. */
    nameKey: text('name_key').notNull(),
    summary: text('summary').notNull(),
    /** Markdown. */
    description: text('description').notNull(),
    tags: text('tags', { mode: 'json' }).notNull().$type<string[]>(),
    kind: text('kind', { enum: DATANET_KINDS }).notNull(),
    /** SPDX licence expression. */
    licence: text('licence').notNull(),
    /** Terms of the owner's besides the licence; '' = none. */
    terms: text('terms').notNull(),
    /** public: everybody with an account may browse it, contribute and (licence accepted) train. */
    visibility: text('visibility', { enum: ['public', 'permissioned'] }).notNull(),
    /** revoked: trains nothing new. */
    state: text('state', { enum: ['active', 'revoked'] }).notNull(),
    /** BCP 47 codes that rows should be in; [] = any. */
    languages: text('languages', { mode: 'json' }).notNull().$type<string[]>(),
    /** Number of the newest published version; 0 = none. */
    version: integer('version').notNull().default(0),
    /** Rows of the newest version. */
    rows: integer('rows').notNull().default(0),
    createdBy: text('created_by').notNull(),
    createdAt: integer('created_at').notNull(),
    updatedAt: integer('updated_at').notNull(),
  },
  (table) => [
    // Names are public from the first version on: before that they are nobody's but the owner's, so nobody is refused because of them.
    uniqueIndex('datanets_published_name').on(table.nameKey).where(sql`version > 0`),
    uniqueIndex('datanets_user_name').on(table.ownerUser, table.nameKey),
    uniqueIndex('datanets_organization_name').on(table.ownerOrganization, table.nameKey),
    index('datanets_owner_user').on(table.ownerUser),
    index('datanets_owner_organization').on(table.ownerOrganization),
    index('datanets_visibility').on(table.visibility, table.state, table.seq),
    // Covers every filter of a listing, so that one page of it reads index pages and never a description.
    index('datanets_browse').on(
      table.seq,
      table.version,
      table.visibility,
      table.state,
      table.kind,
      table.licence,
      table.ownerUser,
      table.ownerOrganization,
    ),
  ],
);

export const contributions = sqliteTable(
  'contributions',
  {
    seq: integer('seq').primaryKey({ autoIncrement: true }),
    id: text('id').notNull().unique(),
    datanetId: text('datanet_id').notNull(),
    contributor: text('contributor').notNull(),
    /** Key that pays for generated rows. */
    keyId: text('key_id').notNull(),
    filename: text('filename').notNull(),
    bytes: integer('bytes').notNull(),
    sha256: text('sha256').notNull(),
    options: text('options', { mode: 'json' }).notNull().$type<ContributionOptions>(),
    /** SPDX expression that the contributor agreed to, when it was uploaded. */
    licence: text('licence').notNull(),
    state: text('state', { enum: ['processing', 'ready', 'failed'] }).notNull(),
    /** Rows that were stored. */
    rows: integer('rows').notNull().default(0),
    /** Records that were not: wrong, or the same as a row that is there. */
    refused: integer('refused').notNull().default(0),
    progress: text('progress', { mode: 'json' }).$type<{ done: number; total: number | null; unit: string }>(),
    /** First hundred. */
    problems: text('problems', { mode: 'json' }).$type<ContributionProblem[]>(),
    error: text('error', { mode: 'json' }).$type<{ code: string; message: string }>(),
    createdAt: integer('created_at').notNull(),
    finishedAt: integer('finished_at'),
  },
  (table) => [
    index('contributions_datanet').on(table.datanetId, table.seq),
    index('contributions_contributor').on(table.contributor, table.createdAt),
    index('contributions_state').on(table.state),
  ],
);

/** What was sent, whatever became of it, for as long as it counts against what a user may send in a day. */
export const contributedBytes = sqliteTable(
  'contributed_bytes',
  {
    contributionId: text('contribution_id').primaryKey(),
    contributor: text('contributor').notNull(),
    bytes: integer('bytes').notNull(),
    createdAt: integer('created_at').notNull(),
  },
  (table) => [index('contributed_bytes_contributor').on(table.contributor, table.createdAt, table.bytes)],
);

/** Questions about parts of a document that were written, and paid, while its contribution is under way. */
export const contributionQuestions = sqliteTable(
  'contribution_questions',
  {
    contributionId: text('contribution_id').notNull(),
    /** Number of the part, from 0, and SHA-256 of its text, hex. */
    chunk: integer('chunk').notNull(),
    chunkHash: text('chunk_hash').notNull(),
    pairs: text('pairs', { mode: 'json' }).notNull().$type<{ question: string; answer: string }[]>(),
  },
  (table) => [primaryKey({ columns: [table.contributionId, table.chunk] })],
);

/** Which gateway reads contributions into a Datanet, until when (milliseconds since 1970 by the database's clock) unless it says so again. */
export const datanetReadings = sqliteTable('datanet_readings', {
  datanetId: text('datanet_id').primaryKey(),
  holder: text('holder').notNull(),
  until: integer('until').notNull(),
});

export interface ContributionOptions {
  /** How records become examples, as in uploads to /v1/files. */
  format?: string;
  columns?: Record<string, string>;
  /** Documents: make question–answer pairs with this served model instead of rows of plain text. */
  questions?: { model: string; perChunk: number };
  /** Documents: about so many characters a chunk. */
  chunkCharacters?: number;
}
export interface ContributionProblem {
  line: number | null;
  field: string | null;
  rule: string;
  message: string;
}

export const datanetRows = sqliteTable(
  'datanet_rows',
  {
    /** The row's public id is `row_` and this number. */
    seq: integer('seq').primaryKey({ autoIncrement: true }),
    datanetId: text('datanet_id').notNull(),
    contributionId: text('contribution_id').notNull(),
    contributor: text('contributor').notNull(),
    /** Canonical JSON of the TrainingExample; null: withdrawn and erased. */
    content: text('content'),
    /** Characters of the content. */
    size: integer('size').notNull(),
    /** SHA-256 of the canonical content, hex. Equal content in a Datanet is one row. */
    contentHash: text('content_hash').notNull(),
    /** Model that wrote the row; null: a person's. */
    generatedBy: text('generated_by'),
    /** 0 to 100, and why it is not more. */
    score: integer('score').notNull(),
    reasons: text('reasons', { mode: 'json' }).notNull().$type<RowReason[]>(),
    /** BCP 47; null: not told, or too short to tell. */
    language: text('language'),
    /** `seq` of the row that this one nearly repeats. */
    nearDuplicateOf: integer('near_duplicate_of'),
    state: text('state', { enum: ['pending', 'approved', 'rejected', 'withdrawn'] }).notNull(),
    reviewer: text('reviewer'),
    reviewedAt: integer('reviewed_at'),
    /** Why it was rejected or withdrawn. */
    stateReason: text('state_reason'),
    /** The leaf as it is in the Merkle tree (versions/leaf.ts), and its RFC 6962 hash. */
    entry: text('entry').notNull(),
    leafHash: blob('leaf_hash', { mode: 'buffer' }).notNull(),
    addedIn: integer('added_in'),
    removedIn: integer('removed_in'),
    createdAt: integer('created_at').notNull(),
  },
  (table) => [
    uniqueIndex('datanet_rows_content').on(table.datanetId, table.contentHash),
    // Covers statistics and the filters of lists, so that they never read contents.
    index('datanet_rows_state').on(
      table.datanetId,
      table.state,
      table.seq,
      table.score,
      table.nearDuplicateOf,
      table.size,
      table.language,
      table.generatedBy,
      table.addedIn,
      table.removedIn,
    ),
    index('datanet_rows_version').on(table.datanetId, table.addedIn, table.seq),
    // The leaves of all versions in their order, so that trees, proofs and differences never read contents.
    index('datanet_rows_tree')
      .on(table.datanetId, table.seq, table.addedIn, table.removedIn, table.leafHash)
      .where(sql`added_in IS NOT NULL`),
    index('datanet_rows_contribution').on(table.contributionId, table.seq),
    index('datanet_rows_contributor').on(table.contributor, table.seq),
  ],
);

export interface RowReason {
  rule: string;
  /** Taken off the score. */
  points: number;
  message: string;
}

/** Locality-sensitive hashing of MinHash signatures: rows that share a band may be near duplicates. */
export const datanetBands = sqliteTable(
  'datanet_bands',
  {
    /** Of datanet, band number and the band's values together. */
    band: integer('band').notNull(),
    row: integer('row').notNull(),
  },
  (table) => [primaryKey({ columns: [table.band, table.row] })],
);

/** MinHash signatures, by row. */
export const datanetSignatures = sqliteTable('datanet_signatures', {
  row: integer('row').primaryKey(),
  signature: blob('signature', { mode: 'buffer' }).notNull(),
});

export const datanetVersions = sqliteTable(
  'datanet_versions',
  {
    datanetId: text('datanet_id').notNull(),
    number: integer('number').notNull(),
    /** building: rows are being given their number; nobody sees it yet. */
    state: text('state', { enum: ['building', 'published'] }).notNull(),
    cause: text('cause', { enum: ['publish', 'withdrawal'] }).notNull(),
    notes: text('notes').notNull(),
    licence: text('licence').notNull(),
    terms: text('terms').notNull(),
    rows: integer('rows').notNull().default(0),
    added: integer('added').notNull().default(0),
    removed: integer('removed').notNull().default(0),
    /** Hex; '' while building. */
    root: text('root').notNull().default(''),
    /** C2SP checkpoint over the rows, signed with the gateway's Datanet key. */
    checkpoint: text('checkpoint').notNull().default(''),
    statistics: text('statistics', { mode: 'json' }).$type<Record<string, unknown>>(),
    createdBy: text('created_by').notNull(),
    createdAt: integer('created_at').notNull(),
  },
  (table) => [primaryKey({ columns: [table.datanetId, table.number] })],
);

/** Inner hashes of versions' Merkle trees, so that a proof reads a few hundred leaves and not all; what is missing is made again from the rows. */
export const versionTiles = sqliteTable(
  'version_tiles',
  {
    datanetId: text('datanet_id').notNull(),
    version: integer('version').notNull(),
    /** From 0; each tile covers 65,536 leaves: 256 blocks of 256. */
    tile: integer('tile').notNull(),
    /** The first row (`seq`) of each block, also of a last one that is not full. */
    starts: text('starts', { mode: 'json' }).notNull().$type<number[]>(),
    /** The root of each full block, 32 bytes each. */
    hashes: blob('hashes', { mode: 'buffer' }).notNull(),
  },
  (table) => [primaryKey({ columns: [table.datanetId, table.version, table.tile] })],
);

/** One row: how often contents were taken away, and how many of these times what the full-text index and the log kept of them is gone too. */
export const erasures = sqliteTable('erasures', {
  id: integer('id').primaryKey(),
  asked: integer('asked').notNull().default(0),
  done: integer('done').notNull().default(0),
});

/** Requests for access, and what became of them: an approved one that has neither expired nor been revoked is a grant. */
export const accessRequests = sqliteTable(
  'access_requests',
  {
    seq: integer('seq').primaryKey({ autoIncrement: true }),
    id: text('id').notNull().unique(),
    datanetId: text('datanet_id').notNull(),
    requestedBy: text('requested_by').notNull(),
    /** For all members of it; null: for the person. */
    organizationId: text('organization_id'),
    purpose: text('purpose').notNull(),
    state: text('state', { enum: ['pending', 'approved', 'rejected', 'revoked'] }).notNull(),
    decidedBy: text('decided_by'),
    decidedAt: integer('decided_at'),
    /** Why it was rejected or revoked. */
    reason: text('reason'),
    expiresAt: integer('expires_at'),
    createdAt: integer('created_at').notNull(),
  },
  (table) => [
    index('access_datanet').on(table.datanetId, table.seq),
    index('access_person').on(table.requestedBy, table.datanetId),
    index('access_organization').on(table.organizationId, table.datanetId),
  ],
);

/** Who agreed to which terms, when. A change of licence or terms asks again. */
export const licenceAcceptances = sqliteTable(
  'licence_acceptances',
  {
    datanetId: text('datanet_id').notNull(),
    userId: text('user_id').notNull(),
    /** SHA-256 of licence expression and terms. */
    termsHash: text('terms_hash').notNull(),
    licence: text('licence').notNull(),
    acceptedAt: integer('accepted_at').notNull(),
  },
  (table) => [primaryKey({ columns: [table.datanetId, table.userId, table.termsHash] })],
);

/** What a fine-tuning job was made of, on record for good: one row a source, in the order of the mixture. */
export const jobSources = sqliteTable(
  'job_sources',
  {
    jobId: text('job_id').notNull(),
    role: text('role', { enum: ['training', 'validation'] }).notNull(),
    position: integer('position').notNull(),
    fileId: text('file_id').notNull(),
    datanetId: text('datanet_id'),
    version: integer('version'),
    /** Merkle root of the version. */
    root: text('root'),
    weight: integer('weight').notNull(),
    /** Examples of an epoch that come from here. */
    examples: integer('examples'),
    /** SHA-256 over the leaf hashes (files: over the examples) in the order in which they are trained on. */
    digest: text('digest'),
  },
  (table) => [
    primaryKey({ columns: [table.jobId, table.role, table.position] }),
    index('job_sources_datanet').on(table.datanetId, table.version),
  ],
);

/** What the users of an adapter should know: rows it was trained on were withdrawn, or its Datanet was revoked. */
export const adapterMarks = sqliteTable(
  'adapter_marks',
  {
    seq: integer('seq').primaryKey({ autoIncrement: true }),
    adapter: text('adapter').notNull(),
    jobId: text('job_id').notNull(),
    datanetId: text('datanet_id').notNull(),
    /** Version that was trained on. */
    version: integer('version').notNull(),
    kind: text('kind', { enum: ['withdrawal', 'revocation'] }).notNull(),
    /** Rows of that version that were withdrawn at this time. */
    rows: integer('rows').notNull(),
    createdAt: integer('created_at').notNull(),
  },
  (table) => [
    index('adapter_marks_adapter').on(table.adapter),
    uniqueIndex('adapter_marks_once').on(table.jobId, table.datanetId, table.kind, table.createdAt),
  ],
);

export type DatanetRow = typeof datanets.$inferSelect;
export type ContributionRow = typeof contributions.$inferSelect;
export type DataRow = typeof datanetRows.$inferSelect;
export type VersionRow = typeof datanetVersions.$inferSelect;
export type AccessRow = typeof accessRequests.$inferSelect;
export type JobSourceRow = typeof jobSources.$inferSelect;
export type AdapterMarkRow = typeof adapterMarks.$inferSelect;
