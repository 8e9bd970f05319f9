/** Every cap of the gateway, in one place. Sizes in bytes, times in milliseconds unless the name says otherwise. */
export const limits = {
  /** JSON bodies; more is answered with 413. */
  bodyBytesMax: 10 * 1024 * 1024,
  /** JSON bodies that are being read at the same time, all callers together; more is answered with 503. */
  bodiesBytesMax: 256 * 1024 * 1024,
  /** A JSON body must arrive whole within this. */
  bodyMs: 120_000,
  /** Adapter uploads, which are piped through and never held. */
  uploadBytesMax: 4 * 1024 * 1024 * 1024,
  /** How long the rest of a refused upload is read past, so that its sender can read why. */
  refusedUploadMs: 30_000,
  /** Sum of header names and values. Node's own cap is set above it, so that the answer has our error shape. */
  headerBytesMax: 32 * 1024,
  authorizationBytesMax: 512,
  /** Nesting of a JSON body; deeper ones cost stack in every later walk over them. */
  jsonDepthMax: 128,

  messagesMax: 2048,
  contentPartsMax: 256,
  toolsMax: 128,
  stopsMax: 4,
  stopCharactersMax: 256,
  choicesMax: 16,
  promptsMax: 64,
  /** The SDKs accept choice indexes below 128. */
  choiceIndexesMax: 128,
  logitBiasMax: 1024,
  topLogprobsMax: 20,
  /** The legacy endpoint's integer. */
  completionLogprobsMax: 5,
  tokensMax: 1_000_000,
  embeddingInputsMax: 2048,
  metadataPairsMax: 16,

  heartbeatMs: 15_000,
  /** A stream whose engine is silent this long begins with its headers; failures after that are told inside the stream. */
  streamHeadersMs: 2_000,
  /** Silence of the daemon after which it is asked whether it still lives. */
  stallProbeMs: 30_000,
  probeTimeoutMs: 5_000,
  /** A reader that leaves this much unread is gone for our purposes. */
  streamBacklogBytesMax: 8 * 1024 * 1024,
  /** One NDJSON line of the daemon. */
  daemonLineBytesMax: 4 * 1024 * 1024,
  daemonTimeoutMs: 30_000,
  embedTimeoutMs: 300_000,
  /** How long lists and health of a daemon are believed. */
  daemonSnapshotMs: 1_000,
  /** A daemon that refused a connection is left alone this long. */
  daemonCoolDownMs: 1_000,
  retryAfterSeconds: 2,
  /** GET /health asks the database at most this often, and waits at most so long for it. */
  healthProbeEveryMs: 1_000,
  healthProbeMs: 1_000,

  /** After a client hung up: how often and how long the daemon is asked for the final cost. */
  settlementPollMs: 20,
  settlementPollMsMax: 500,
  settlementPollsMax: 200,
  /** So many 404s in a row from a daemon that answers mean: there is no receipt and will be none (about 5 s). */
  settlementAbsencesMax: 20,
  /** A reservation older than this is settled by the sweep, whatever became of its request. */
  reservationDeadlineMs: 30 * 60_000,
  sweepEveryMs: 60_000,
  /** Settled reservations are kept this long (they make posting idempotent), then deleted in portions. */
  reservationKeptMs: 7 * 24 * 3_600_000,
  sweepRowsMax: 500,

  keyCacheEntriesMax: 10_000,
  /** Unknown credentials are remembered briefly, so that guessing does not become database load. */
  unknownKeyCacheMs: 2_000,
  keysListMax: 1000,
  /** That a user may have, but for revoked ones. */
  keysPerUserMax: 200,
  keyNameCharactersMax: 128,
  allowListMax: 1000,
  rateBucketsMax: 50_000,

  /** Sessions of browsers: their life, how long they may be idle, how long one is believed without a look at the database. */
  sessionLifeMs: 14 * 24 * 3_600_000,
  sessionIdleMs: 24 * 3_600_000,
  sessionCacheMs: 5_000,
  sessionCacheEntriesMax: 10_000,
  /** That a session was seen is written at most so often. */
  sessionSeenEveryMs: 60_000,
  sessionsPerUserMax: 50,
  /** Rows of sessions and invitations that are over are kept so long. */
  sessionKeptMs: 30 * 24 * 3_600_000,
  invitationMs: 7 * 24 * 3_600_000,

  /** The audit log: rows that one user's acts, or one network's log-ins, may write; what is kept, and how it is pruned. */
  auditActsPerMinute: 600,
  auditKeptMs: 365 * 24 * 3_600_000,
  auditPruneEveryMs: 24 * 3_600_000,
  auditPruneRowsMax: 2_000,

  passwordCharactersMin: 12,
  passwordCharactersMax: 256,
  /** Each takes 128 MB and a third of a second of a core. */
  passwordsAtOnce: 2,
  passwordsWaitingMax: 32,
  passwordWaitMs: 10_000,
  /** Failed log-ins without a wait; then 1 s, doubled with each, up to the longest. An address may be that of a whole office. */
  loginFailuresFree: 4,
  loginFailuresFreeOfAddress: 19,
  loginWaitMs: 1_000,
  loginWaitMsMax: 15 * 60_000,
  /** Failures are forgotten after so long without one. */
  loginFailureKeptMs: 24 * 3_600_000,

  pageDefault: 20,
  pageMax: 100,
  /** Before names are looked at: more cannot be one. */
  nameCharactersGivenMax: 1_000,
  organizationsPerUserMax: 100,
  membersPerOrganizationMax: 10_000,

  /** Logging in through an OpenID provider: how long it may take, and how long it is asked for. */
  oidcAttemptMs: 600_000,
  oidcAttemptsSpentMax: 10_000,
  oidcTimeoutMs: 10_000,
  /** Whatever it answers: its description, keys, tokens. */
  oidcDocumentBytesMax: 256 * 1024,
  oidcDescriptionMs: 3_600_000,
  /** After a failure it is left alone so long; unknown keys make its keys be read again no oftener. */
  oidcRetryMs: 5_000,
  /** How far its clock may be off, and how old an ID token may be. */
  oidcSkewSeconds: 60,
  oidcTokenAgeSeconds: 600,
  /** Codes that are exchanged at the same time, all callers together. */
  oidcExchangesMax: 32,
  oidcReturnToCharactersMax: 1_024,
  identitiesPerUserMax: 10,

  /** For keys that name no limits of their own. */
  requestsPerMinuteDefault: 60_000,
  tokensPerMinuteDefault: 60_000_000,
  concurrencyDefault: 256,
  requestsPerMinuteMax: 10_000_000,
  tokensPerMinuteMax: 100_000_000_000,
  concurrencyMax: 100_000,

  /** /v1/files: one file; all files of a key; their number; names. */
  fileBytesMax: 512 * 1024 * 1024,
  fileBytesPerKeyMax: 20 * 1024 * 1024 * 1024,
  filesPerKeyMax: 1000,
  fileNameCharactersMax: 255,
  /** An upload of which nothing more comes for so long is given up. */
  fileIdleMs: 60_000,
  /** Kept free on the disk that holds the files. */
  fileDiskReserveBytes: 64 * 1024 * 1024,
  formFieldBytesMax: 64 * 1024,
  formFieldsMax: 32,
  filesListMax: 10_000,
  fileExpirySecondsMin: 3_600,
  fileExpirySecondsMax: 2_592_000,
  /** What `purpose: batch` gets where nothing is said. */
  batchFileExpirySeconds: 2_592_000,

  /** Data sets: one line or record, its nesting, how many there may be, and how many problems a report lists. */
  datasetLineBytesMax: 4 * 1024 * 1024,
  datasetDepthMax: 64,
  datasetExamplesMax: 1_000_000,
  datasetExamplesMin: 10,
  datasetProblemsMax: 100,
  datasetColumnsMax: 1024,
  /** A Parquet row group is decoded as a whole; so much may it be, decoded. */
  parquetGroupBytesMax: 256 * 1024 * 1024,
  parquetRowsAtOnce: 2_000,
  parquetRowsMs: 30_000,
  datasetUploadMs: 30 * 60_000,
  /** Files that are read and checked at the same time. */
  validationsAtOnce: 2,

  /** Fine-tuning jobs that a key may have waiting or running. */
  jobsPerKeyMax: 16,
  jobsListMax: 100,
  /** SSE streams of job events: all callers together, and of one user or operator's key. */
  eventStreamsMax: 256,
  eventStreamsPerOwnerMax: 32,
  eventsPageMax: 1000,
  jobsPollMs: 500,
  /** How long cancel, pause and resume wait for the daemon to have done so before they answer with the state as it is. */
  jobActionMs: 5_000,
  jobRetryMs: 500,
  jobRetryMsMax: 15_000,
  /** Gateways that share a database: one that is silent so long loses its jobs to others; it says that it lives so often. */
  jobLeaseMs: 10_000,
  jobLeaseRenewMs: 1_000,
  /** Failures of our own in a row after which a job is given up. */
  jobDefectsMax: 5,
  permissionsMax: 50,

  evaluationsListMax: 100,
  /** Criteria of one promotion. */
  criteriaMax: 16,
  aliasHistoryMax: 100,
  /** As the daemon's own: a judge writes a number. */
  judgeTokensMax: 24,

  /** Datanets: what one holds of words, and how many an owner may have. */
  datanetSummaryCharactersMax: 280,
  datanetDescriptionBytesMax: 64 * 1024,
  datanetTermsBytesMax: 16 * 1024,
  datanetTagsMax: 16,
  datanetTagCharactersMax: 40,
  datanetLanguagesMax: 16,
  datanetLicenceCharactersMax: 256,
  datanetsPerOwnerMax: 1000,
  datanetsListMax: 100,
  datanetRowsListMax: 100,
  datanetQueryCharactersMax: 256,
  datanetQueryWordsMax: 16,
  /** A word that every row has matches very many: so many of the newest are ranked, and so many looked at for those one may read. */
  searchRankedMax: 250,
  searchExaminedMax: 10_000,
  searchRankedCharactersMax: 200_000,

  /** Contributions: rows of one; characters of a row as canonical JSON; how many a user may have under way. */
  contributionRowsMax: 250_000,
  contributionRowCharactersMax: 64 * 1024,
  contributionsUnderWayMax: 4,
  /** Of one user in any 24 hours. A setting (MODELFACTORY_CONTRIBUTION_BYTES) can change it. */
  contributionBytesPerDay: 4 * 1024 * 1024 * 1024,
  contributionProblemsMax: 100,
  contributionsListMax: 100,
  /** How long a gateway that shares its database keeps others from reading into a Datanet without being heard of. */
  readingLeaseMs: 20_000,
  /** Contributions that are read at the same time, all users together. */
  ingestsAtOnce: 2,
  /** Rows of one transaction: it holds up everybody else who writes. */
  ingestBatchRows: 400,
  ingestBatchCharacters: 2 * 1024 * 1024,
  ingestHeapMb: 192,
  prepareHeapMb: 128,
  /** Of what was just made: batches die young, and a larger nursery only holds more of them. A semi-space; all of it. */
  ingestYoungMb: 4,
  prepareYoungMb: 6,
  ingestIdleMs: 30_000,
  /** A process that reads says that it lives; one that is silent for so long is ended. One that is asked to stop has less time. */
  ingestAliveEveryMs: 2_000,
  ingestSilenceMsMax: 60_000,
  ingestStopMs: 10_000,
  /** Judging and signing one batch of rows; it takes a tenth of a second. */
  prepareMsMax: 60_000,
  /** Rows whose bands are kept back, and bands of one transaction. */
  bandRowsKept: 5_000,
  bandsAtOnce: 5_000,
  /** Newest rows of a band that a new row is compared with. */
  nearDuplicateCandidatesMax: 4,
  /** Points that a near duplicate loses. */
  nearDuplicatePoints: 40,
  chunkCharactersMin: 200,
  chunkCharactersMax: 8_000,
  documentChunksMax: 10_000,
  questionsPerChunkMax: 8,
  /** Chunks that questions are written about: each costs a generation. */
  questionChunksMax: 2_000,
  questionsAtOnce: 4,
  /** Rows that a review names; a filter may choose more. */
  reviewRowsMax: 1_000,
  reviewReasonCharactersMax: 1_000,
  reviewBatchRows: 2_000,

  /** Requests for access: their purpose, how many a person may have waiting. */
  accessPurposeCharactersMin: 10,
  accessPurposeCharactersMax: 2_000,
  accessReasonCharactersMax: 2_000,
  accessRequestsPendingMax: 100,

  /** Versions of Datanets in one page of /v1/files?purpose=datanet. */
  datanetFilesListMax: 1_000,
  /** Sources of one mixture, and their weights. */
  mixtureSourcesMax: 16,
  mixtureWeightMax: 1_000_000,
  /** Examples that are read back from the scratch file at a time: between two portions others have their turn. */
  mixtureReadRows: 256,
  /** Jobs that have not begun are asked again so often whether they still may: grants expire, roles change. */
  trainingRightsEveryMs: 30_000,

  /** Versions of Datanets: rows that one statement writes, leaves that one reads; rows whose bands are sorted to be taken away. */
  versionRowsAtOnce: 1_000,
  versionLeavesAtOnce: 4_000,
  eraseRowsAtOnce: 20_000,
  /** How often it is looked whether words of erased rows are to be cleaned out of the full-text index. */
  cleanEveryMs: 10 * 60_000,
  /** Pages of the full-text index that one statement merges. */
  mergePagesFirst: 16,
  mergePagesAtOnce: 512,
  /** A version that another gateway has been building for so long was left behind by it. */
  versionBuildMs: 10 * 60_000,
  /** How long a withdrawal waits for a version under way. */
  versionWaitMs: 30_000,
  versionNotesCharactersMax: 10_000,
  /** Contributors, models and languages that the statistics of a version name one by one; the biggest ones. */
  statisticsNamesMax: 1_000,
  /** Long work over rows goes in pieces: how long one holds the thread, how many rows the first takes, and the least that one takes. */
  pieceMs: 5,
  pieceRowsFirst: 100,
  pieceRowsMin: 25,
  /** Inner hashes of versions that are kept for the next proof: less than a byte a row. */
  tileCacheBytesMax: 16 * 1024 * 1024,
  /** Rows that a withdrawal may list; of a contribution, all. */
  withdrawalRowsMax: 10_000,
  withdrawalReasonCharactersMax: 2_000,
  /** Exports: rows and characters that are read at once. */
  exportRowsAtOnce: 256,
  exportCharactersAtOnce: 1024 * 1024,
  /** Digests of exports that are remembered, and how long one waits for its turn to be made. */
  exportDigestWaitMs: 60_000,
  exportDigestsMax: 1_000,

  /** Distinct model names in metric labels; the rest are counted as `other`. */
  metricModelsMax: 256,
  shutdownMs: 15_000,
} as const;
