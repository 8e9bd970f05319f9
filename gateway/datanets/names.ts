/** Names of Datanets: an owner's own are distinct, and so are all published ones; a name that is not published yet is nobody else's affair. */
import { ApiError } from '../errors.ts';

/** @param name null: of a Datanet that is just being published. */
export function nameTaken(name: string | null = null): ApiError {
  const message =
    name === null
      ? 'Another Datanet of this name, or of one that looks the same, was published. Rename this one first.'
      : `You have a Datanet called "${name}", or one of that name is published, or one whose name looks the same. Choose another name.`;
  return new ApiError(409, 'invalid_request_error', 'name_taken', message, { param: 'name' });
}
