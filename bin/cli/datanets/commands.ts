/** `modelfactory datanets …` */
import { type Command, Option } from 'commander';
import { type Context, positive, score, subcommand, words } from '../command.ts';
import { acceptLicence, decide, listRequests, requestAccess } from './access.ts';
import { contribute, listContributions, takeBack } from './contributions.ts';
import { changeDatanet, createDatanet, listDatanets, setRevoked, showDatanet } from './datanets.ts';
import { listRows, reviewRows, searchRows, showRow } from './rows.ts';
import { diff, exportVersion, listVersions, publish, saveProof, withdraw } from './versions.ts';

const DATANET = ['<datanet>', 'id or name'] as const;
const VERSION = ['<datanet[@version]>', 'id or name; without @VERSION the newest'] as const;
const KINDS = ['chat', 'completion', 'preference'];
const VISIBILITIES = ['public', 'permissioned'];

export function datanetCommands(program: Command, context: Context): void {
  const datanets = program
    .command('datanets')
    .description('data sets of a community: every row with its contributor, licence and place in a version');
  describeCommands(datanets, context);
  contributionCommands(datanets, context);
  versionCommands(datanets, context);
  accessCommands(datanets, context);
}

function described(command: Command): Command {
  return command
    .option('--summary <text>', 'one line')
    .option('--description <markdown>', 'or @FILE that holds it')
    .option('--tags <list>', 'separated by commas', words)
    .option('--terms <text>', "the owner's terms besides the licence, or @FILE that holds them")
    .option('--languages <list>', 'that rows should be in, such as en,de (default: any)', words);
}

function describeCommands(datanets: Command, { client, output }: Context): void {
  described(subcommand(datanets, 'create <name>', 'make a Datanet; prints its id'))
    .addOption(new Option('--kind <kind>', 'of its rows').choices(KINDS).default('chat'))
    .requiredOption('--licence <expression>', 'SPDX, such as CC-BY-4.0')
    .addOption(new Option('--visibility <who>', 'who may read it').choices(VISIBILITIES).default('permissioned'))
    .option('--org <id>', 'the organisation that owns it (default: you)')
    .action((name, options) => createDatanet(client(), name, options, output));
  described(subcommand(datanets, 'change', 'what is given is replaced; versions keep what they had'))
    .argument(...DATANET)
    .option('--name <name>', 'as long as nothing is published')
    .option('--licence <expression>', 'of new versions')
    .addOption(new Option('--visibility <who>', 'who may read it').choices(VISIBILITIES))
    .action((datanet, options) => changeDatanet(client(), datanet, options, output));
  subcommand(datanets, 'list', 'those that you may see, newest first')
    .option('--search <text>', 'in names, summaries and descriptions')
    .option('--tag <tag>', 'only these')
    .option('--licence <expression>', 'only these')
    .addOption(new Option('--kind <kind>', 'only these').choices(KINDS))
    .addOption(new Option('--visibility <who>', 'only these').choices(VISIBILITIES))
    .option('--mine', 'only your own and those of your organisations')
    .option('--limit <n>', 'how many', positive, 100)
    .action((options) => listDatanets(client(), options, output));
  subcommand(datanets, 'show', 'all about one, and what you may do with it')
    .argument(...DATANET)
    .action((datanet, options) => showDatanet(client(), datanet, options, output));
  for (const [action, says] of [
    ['revoke', 'nothing new is trained on it; what was trained is marked and stays on record'],
    ['reactivate', 'undo a revocation; marks stay'],
  ] as const)
    subcommand(datanets, action, says)
      .argument(...DATANET)
      .requiredOption('--reason <text>', 'for the audit log')
      .action((datanet, options) => setRevoked(client(), datanet, action, options, output));
}

function contributionCommands(datanets: Command, { client, output, setCode }: Context): void {
  subcommand(datanets, 'contribute', 'send rows (.jsonl .json .csv .tsv .parquet) or a document (.md .txt .pdf .docx)')
    .argument(...DATANET)
    .argument('<file>')
    .option('--accept-licence', "you may give it under the Datanet's licence, and do")
    .option('--format <format>', 'of rows: chat, completion, preference, alpaca, sharegpt or table')
    .option('--columns <pairs>', 'which column holds what, e.g. prompt=question,completion=answer')
    .option('--questions <model>', 'of documents: let this model write questions and answers, marked as its own')
    .option('--per-chunk <n>', 'questions a piece of the document', positive, 2)
    .option('--chunk <n>', 'characters a piece of the document', positive)
    .option('--no-wait', 'do not wait until it is read')
    .action(async (datanet, file, options) => setCode(await contribute(client(), datanet, file, options, output)));
  subcommand(datanets, 'contributions', 'newest first: all for those who govern it, else your own')
    .argument(...DATANET)
    .action((datanet, options) => listContributions(client(), datanet, options, output));
  subcommand(datanets, 'take-back', 'a contribution of yours of which nothing is published yet')
    .argument(...DATANET)
    .argument('<contribution>')
    .action((datanet, contribution, options) => takeBack(client(), datanet, contribution, options, output));
  subcommand(datanets, 'rows', 'newest first, with scores and why they are not higher')
    .argument(...DATANET)
    .addOption(new Option('--state <state>', 'only these').choices(['pending', 'approved', 'rejected', 'withdrawn']))
    .option('--contribution <id>', 'only of this one')
    .option('--contributor <id>', 'only of this user; `me`: your own')
    .option('--min-score <n>', '0 to 100', score)
    .option('--version <n>', 'as they are in this version', positive)
    .option('--limit <n>', 'how many', positive, 50)
    .action((datanet, options) => listRows(client(), datanet, options, output));
  subcommand(datanets, 'row', 'one row, as JSON')
    .argument(...DATANET)
    .argument('<row>')
    .action((datanet, row, options) => showRow(client(), datanet, row, options, output));
  subcommand(datanets, 'search', 'full text, over the rows that you may read')
    .argument(...DATANET)
    .argument('<words>', '"several words" for a phrase, word* for a beginning')
    .option('--limit <n>', 'how many, at most 50', positive, 20)
    .action((datanet, query, options) => searchRows(client(), datanet, query, options, output));
  const review = datanets.command('review').description('decide about pending rows');
  for (const action of ['approve', 'reject'] as const)
    subcommand(review, action, 'rows by id, or all pending ones that the options choose')
      .argument(...DATANET)
      .argument('[rows...]')
      .option('--all-pending', 'every pending row')
      .option('--min-score <n>', '0 to 100', score)
      .option('--max-score <n>', '0 to 100', score)
      .option('--contribution <id>', 'only of this one')
      .option('--contributor <id>', 'only of this user')
      .option('--near-duplicates', 'only those that nearly repeat another row')
      .option('--no-near-duplicates', 'only those that do not')
      .option('--reason <text>', action === 'reject' ? 'for the contributor to read' : 'for the record')
      .action((datanet, rows, options) => reviewRows(client(), datanet, action, rows, options, output));
}

function versionCommands(datanets: Command, { client, output }: Context): void {
  subcommand(datanets, 'publish', 'make a version of all approved rows; prints its number')
    .argument(...DATANET)
    .option('--notes <text>', 'what is new', '')
    .action((datanet, options) => publish(client(), datanet, options, output));
  subcommand(datanets, 'versions', 'newest first')
    .argument(...DATANET)
    .action((datanet, options) => listVersions(client(), datanet, options, output));
  subcommand(datanets, 'diff', 'rows that one version has and the other lacks')
    .argument(...DATANET)
    .argument('<from>', 'number of a version', positive)
    .argument('<to>', 'number of a version', positive)
    .action((datanet, from, to, options) => diff(client(), datanet, from, to, options, output));
  subcommand(datanets, 'export', 'a version as a file')
    .argument(...VERSION)
    .addOption(
      new Option('--format <format>', 'of the file').choices(['jsonl', 'csv', 'croissant']).makeOptionMandatory(),
    )
    .option('--out <file>', 'where to; default: its name and version, here')
    .option('--provenance', 'jsonl and csv: with row, contributor, licence and hash of each')
    .option('--force', 'replace what is there')
    .action((datanet, options) => exportVersion(client(), datanet, options, output));
  datanets
    .command('proof')
    .description('proof that a row is in a version; `modelfactory verify` checks it')
    .argument(...VERSION)
    .argument('<row>')
    .option('--out <file>', 'where to; default: standard output')
    .action((datanet, row, options) => saveProof(client(), datanet, row, options, output));
  subcommand(datanets, 'withdraw', 'take rows out: a new version without them, marks on what was trained on them')
    .argument(...DATANET)
    .argument('[rows...]')
    .option('--contribution <id>', 'all rows of this one')
    .requiredOption('--reason <text>', 'on record')
    .option('--erase', 'their contents too, from all versions; hashes stay')
    .action((datanet, rows, options) => withdraw(client(), datanet, rows, options, output));
}

function accessCommands(datanets: Command, { client, output }: Context): void {
  subcommand(datanets, 'accept-licence', 'shows licence and terms; agreeing is put on record')
    .argument(...DATANET)
    .option('--yes', 'you have read them and agree')
    .action((datanet, options) => acceptLicence(client(), datanet, options, output));
  subcommand(datanets, 'request', 'ask for access to a permissioned Datanet; prints the id of the request')
    .argument(...DATANET)
    .requiredOption('--purpose <text>', 'what you want it for')
    .option('--org <id>', 'for all members of this organisation')
    .option('--accept-licence', 'you agree to its licence and terms')
    .action((datanet, options) => requestAccess(client(), datanet, options, output));
  subcommand(datanets, 'requests', 'newest first: all for those who govern it, else your own')
    .argument(...DATANET)
    .addOption(new Option('--state <state>', 'only these').choices(['pending', 'approved', 'rejected', 'revoked']))
    .action((datanet, options) => listRequests(client(), datanet, options, output));
  subcommand(datanets, 'grant', 'approve a request')
    .argument(...DATANET)
    .argument('<request>')
    .option('--expires <when>', '30d, 12h, or a date')
    .option('--reason <text>', 'on record')
    .action((datanet, request, options) => decide(client(), datanet, request, 'approve', options, output));
  for (const [name, action, says] of [
    ['deny', 'reject', 'refuse a request'],
    ['revoke-access', 'revoke', 'take back what was granted; what has not begun to train does not begin'],
  ] as const)
    subcommand(datanets, name, says)
      .argument(...DATANET)
      .argument('<request>')
      .requiredOption('--reason <text>', 'for whoever asked')
      .action((datanet, request, options) => decide(client(), datanet, request, action, options, output));
}
