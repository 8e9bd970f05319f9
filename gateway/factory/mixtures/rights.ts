/**
 * Whether somebody may train on something now: asked when a job is made, when its files are validated, right before its run begins, and when
 * it goes on after a pause. Each time by what holds then: the owner's role and state, grants, licences, the Datanet itself.
 */

import { ROLE_SCOPES } from '../../auth/scopes.ts';
import type { Access, Caller } from '../../datanets/access/access.ts';
import { trainRefusalWords } from '../../datanets/access/refusals.ts';
import type { Database } from '../../db/open.ts';
import type { Role } from '../../db/people-schema.ts';
import type { JobRow } from '../../db/schema.ts';
import { type DatanetFile, type DatanetFiles, parseDatanetFileId } from './datanet-file.ts';

export interface Refused {
  code: string;
  message: string;
}

export class TrainingRights {
  readonly #db: Database;
  readonly #access: Access;
  readonly #files: DatanetFiles;

  constructor(db: Database, access: Access, files: DatanetFiles) {
    this.#db = db;
    this.#access = access;
    this.#files = files;
  }

  /** A version to train on; `hidden`: for this caller there is no such file; else why not, in words. */
  async datanetFile(caller: Caller, fileId: string): Promise<DatanetFile | Refused | 'hidden'> {
    const file = await this.#files.seen(caller, fileId);
    if (file === null) return 'hidden';
    const { datanet, version } = file;
    const { training } = file.standing;
    if (training === 'not_visible') return 'hidden';
    if (caller.userId === null) {
      const message = `Nobody agreed to the licence of the Datanet “${datanet.name}” (${datanet.id}): this key is the operator's and belongs to no user. Make a user with \`modelfactory users add\` and train with a personal key.`;
      return { code: 'user_required', message };
    }
    if (training !== null) return trainRefusalWords(training, datanet);
    const withdrawn = await this.#withdrawn(datanet.id, version.number);
    if (withdrawn > 0) {
      const message = `${withdrawn === 1 ? 'A row' : `${withdrawn} rows`} of version ${version.number} of the Datanet “${datanet.name}” (${datanet.id}) ${withdrawn === 1 ? 'was' : 'were'} withdrawn since. Train on a newer version; the newest is ${datanet.version}.`;
      return { code: 'rows_withdrawn', message };
    }
    return { id: file.id, datanet, version };
  }

  /** Rows of a version that were taken out of a later one, published yet or not. */
  async #withdrawn(datanetId: string, number: number): Promise<number> {
    // Asked of the versions first, which are few: most Datanets never lose a row.
    const { rows } = await this.#db.$client.execute({
      sql: `SELECT CASE WHEN EXISTS (SELECT 1 FROM datanet_versions WHERE datanet_id = :datanet AND number > :number AND cause = 'withdrawal')
        THEN (SELECT count(*) FROM datanet_rows INDEXED BY datanet_rows_tree
          WHERE datanet_id = :datanet AND added_in IS NOT NULL AND added_in <= :number AND removed_in > :number) ELSE 0 END AS count`,
      args: { datanet: datanetId, number },
    });
    return Number(rows[0]?.count ?? 0);
  }

  /** Why a job may not begin, or go on after a pause; null: it may. */
  async ofJob(job: JobRow, fileIds: readonly string[]): Promise<Refused | null> {
    const owner = await this.#ownerNow(job.owner);
    if ('code' in owner) return owner;
    for (const id of fileIds) {
      if (parseDatanetFileId(id) === null) continue;
      const found = await this.datanetFile(owner, id);
      if (found === 'hidden')
        return { code: 'not_found', message: `There is no file ${id} any more that you may see.` };
      if ('code' in found) return found;
    }
    return null;
  }

  /** Why the owner of a job may not train any more, whatever on; null: they may. */
  async ofOwner(job: JobRow): Promise<Refused | null> {
    const owner = await this.#ownerNow(job.owner);
    return 'code' in owner ? owner : null;
  }

  /** The owner of a job as they are now, with all that their role allows; an operator's key is nobody. */
  async #ownerNow(ownerId: string): Promise<Caller | Refused> {
    if (!ownerId.startsWith('user_')) return { userId: null, scopes: new Set() };
    const user = await this.#access.user(ownerId);
    if (user === null)
      return { code: 'user_unknown', message: 'The account that the job belongs to is not there any more.' };
    if (user.state !== 'active')
      return { code: 'user_disabled', message: `The account that the job belongs to is ${user.state}.` };
    const scopes = ROLE_SCOPES[user.role as Role];
    if (!scopes.has('fine_tuning'))
      return {
        code: 'role_changed',
        message: `The account that the job belongs to has the role ${user.role}, which may not train.`,
      };
    return { userId: ownerId, scopes };
  }
}
