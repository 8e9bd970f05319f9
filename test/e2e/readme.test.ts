/** README.md is run as it is written; only the port is another one. */
import { execFile } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { apiDoc } from '../../bin/api-doc.ts';
import { randomAdapter, SMOLLM2_135M } from '../../loadtest/bench/adapters.ts';
import { defaultModelPath, SKIP_REASON } from '../support/model.ts';
import { writePeftAdapter } from '../support/safetensors-writer.ts';
import { SHAPE } from './adapters.ts';
import { BASE, Product, root } from './product.ts';

const run = promisify(execFile);
const readme = readFileSync(join(root, 'README.md'), 'utf8');
const model = await defaultModelPath();

/** Code blocks of one language below a heading, in order. */
function blocks(heading: string, language: string): string[] {
  const [, section] = new RegExp(`^## ${heading}\\n(.*?)(?=^## |$(?![\\s\\S]))`, 'ms').exec(readme) ?? [];
  if (section === undefined) throw new Error(`README.md has no section ${heading}`);
  return [...section.matchAll(/^```(\w+)\n(.*?)^```$/gms)]
    .filter(([, name]) => name === language)
    .map(([, , code]) => code as string);
}

/** What comes before the first use of `client`, and makes it; later examples say "`client` as above". */
function withClient(language: 'js' | 'python', code: string | undefined): string {
  const [first] = blocks('First chat', language);
  const [head] = /^.*?\nclient =.*?\n|^.*?\nconst client =.*?\n/s.exec(first as string) ?? [];
  if (head === undefined) throw new Error(`README.md makes no client in ${language}`);
  return `${head}${code}`;
}

describe('documents', () => {
  it('docs/api.md is what bin/api-doc.ts writes', () => {
    expect(readFileSync(join(root, 'docs', 'api.md'), 'utf8')).toBe(apiDoc());
  });

  it('links of README.md lead to files', () => {
    const links = [...readme.matchAll(/\]\((?!https?:)([^)#]+)\)/g)].map(([, path]) => path as string);
    expect(links.length).toBeGreaterThan(5);
    expect(links.filter((path) => !existsSync(join(root, path)))).toEqual([]);
  });

  it('README.md is short enough to be read', () => {
    expect(readme.split('\n').length).toBeLessThanOrEqual(200);
  });
});

describe.skipIf(model === null)(`README.md${model === null ? ` (${SKIP_REASON})` : ''}`, () => {
  let product: Product;
  let clone: string;
  let env: NodeJS.ProcessEnv;

  beforeAll(async () => {
    product = await Product.start();
    // What a clone looks like to who stands in it, with the data of this server.
    clone = join(product.folder, 'clone');
    mkdirSync(clone);
    for (const name of ['package.json', 'bin', 'node_modules']) symlinkSync(join(root, name), join(clone, name));
    symlinkSync(product.dataDir, join(clone, 'data'));
    writePeftAdapter(join(clone, 'my-adapter'), SHAPE, { rank: 4, deviation: 0.02 });
    writeFileSync(join(clone, 'tone.gguf'), randomAdapter(SMOLLM2_135M, 4, 9, 3).file);
    env = { ...process.env, PORT: String(product.port), MODELFACTORY_DATA: product.dataDir };
    delete env.MODELFACTORY_URL;
    delete env.MODELFACTORY_KEY;
  });
  afterAll(() => product?.stop());

  const here = (code: string) => code.replaceAll('127.0.0.1:8787', `127.0.0.1:${product.port}`);
  async function execute(command: string, args: string[]): Promise<string> {
    const { stdout } = await run(command, args, { cwd: clone, env, timeout: 150_000 });
    return stdout;
  }
  const shell = (code: string) => execute('bash', ['-euo', 'pipefail', '-c', here(code)]);
  async function script(file: string, program: string, code: string | undefined): Promise<string> {
    writeFileSync(join(clone, file), here(code as string));
    return await execute(program, [file]);
  }

  const example = (thing: string, ask: string) => ({
    messages: [
      { role: 'user', content: `${ask} ${thing}?` },
      { role: 'assistant', content: `Aye, ${thing}!` },
    ],
  });
  const write = (name: string, things: string[]) =>
    writeFileSync(
      join(clone, name),
      things.flatMap((t) => ['What is', 'Where is'].map((ask) => `${JSON.stringify(example(t, ask))}\n`)).join(''),
    );
  const writeTraining = () =>
    write('train.jsonl', ['bread', 'salt', 'iron', 'rain', 'glass', 'honey', 'coffee', 'a book']);

  it('the first chat with curl', async () => {
    const [start, curl] = blocks('Start', 'sh');
    expect(start).toBe('npm start\n');
    const answer = JSON.parse(await shell(curl as string)) as {
      model: string;
      choices: { message: { content: string } }[];
    };
    expect(answer.model).toBe(BASE);
    expect(answer.choices[0]?.message.content).not.toBe('');
  });

  it('the first chat with the Node SDK', async () => {
    const output = await script('chat.mjs', process.execPath, blocks('First chat', 'js')[0]);
    expect(output.trim().length).toBeGreaterThan(10);
  });

  it('the first chat with the Python SDK', { timeout: 180_000 }, async ({ skip }) => {
    const python = await pythonWithOpenAi().catch((error: Error) => error);
    if (python instanceof Error) return skip(`no Python with the openai package: ${python.message.slice(0, 200)}`);
    const output = await script('chat.py', python, blocks('First chat', 'python')[0]);
    expect(JSON.parse(output)).toEqual({ city: expect.any(String), country: expect.any(String) });
  });

  it('training with the Node SDK, the Python SDK and the command line', { timeout: 300_000 }, async () => {
    writeTraining();
    write('held-out.jsonl', ['fire', 'milk']);
    const name = (suffix: string) => new RegExp(`^ft:${BASE}:local:${suffix}:[0-9a-z]{8}$`);
    const node = await script('train.mjs', process.execPath, withClient('js', blocks('Train', 'js')[0]));
    expect(node.trim()).toMatch(name(''));
    const python = await pythonWithOpenAi().catch((error: Error) => error);
    if (python instanceof Error) console.warn(`no Python with the openai package: ${python.message.slice(0, 200)}`);
    else
      expect((await script('train.py', python, withClient('python', blocks('Train', 'python')[0]))).trim()).toMatch(
        name(''),
      );
    const [commands] = blocks('Train', 'sh');
    const output = await shell(commands as string);
    expect(output).toMatch(/^ROUGE-L /m);
    expect(output).toMatch(new RegExp(`^support stands for ft:${BASE}:local:support:\\w{8} now`, 'm'));
    const answer = await product.client().chat.completions.create({
      model: 'support',
      messages: [{ role: 'user', content: 'What is snow?' }],
      max_tokens: 8,
    });
    expect(answer.choices[0]?.message.content).not.toBe('');
  });

  it('adapters, several of them at once, keys, and a receipt that verifies', async () => {
    const [add] = blocks('Adapters', 'sh');
    const listed = await shell(add as string);
    expect(listed).toMatch(/legal is ready: rank 4/);
    expect(listed).toMatch(/^tone +4 .*upload$/m);
    const lines = await script('several.mjs', process.execPath, withClient('js', blocks('Adapters', 'js')[0]));
    expect(lines.match(/^(legal|tone|smollm2-135m-instruct): ./gm)).toHaveLength(3);

    const [keys] = blocks('Keys and limits', 'sh');
    const made = await shell(keys as string);
    const [key] = made.match(/^mf-[\w-]{43}$/m) as RegExpMatchArray;
    expect(made).toMatch(/app .* legal,tone +60 +- +4 +0 \/ 2\.5$/m);
    const ids = (await product.client(key).models.list()).data.map(({ id }) => id);
    expect(ids.sort()).toEqual(['legal', 'tone']);

    const [receipt] = blocks('Receipts', 'sh');
    expect(await shell(receipt as string)).toMatch(/^VERIFIED$/m);
  });

  it('people and Datanets: from an invitation to a trained model, a withdrawal and a revocation', {
    timeout: 200_000,
  }, async () => {
    writeTraining();
    write('own.jsonl', ['snow', 'a door', 'wool', 'tin', 'a lamp', 'cork']);
    const [story] = blocks('People and Datanets', 'sh');
    const output = await shell(story as string);
    expect(output).toMatch(/^16 rows are approved\.$/m);
    expect(output).toMatch(/^VERIFIED$/m);
    expect(output).toMatch(/^acc_\w+ is approved until /m);
    const [model] = output.match(new RegExp(`^ft:${BASE}:local::[0-9a-z]{8}$`, 'm')) as RegExpMatchArray;
    expect(output).toMatch(/^1 row is withdrawn\. Version 2 is without them/m);
    expect(output).toMatch(/is revoked: nothing new is trained on it\. 1 adapter is marked/);
    const path = `/api/adapters/${encodeURIComponent(model as string)}/sources`;
    const { marks } = await product.json<{ marks: { kind: string }[] }>('GET', path);
    expect(marks.map(({ kind }) => kind).sort()).toEqual(['revocation', 'withdrawal']);
  });

  it('names no command or option that does not exist', async () => {
    const commands = new Set(
      [...readme.matchAll(/modelfactory ((?:[a-z]+ ?)+)/g)].map(([, words]) =>
        (words as string).trim().split(' ').slice(0, 2).join(' '),
      ),
    );
    expect(commands.size).toBeGreaterThan(5);
    await Promise.all(
      [...commands].map(async (words) => {
        const help = await execute(process.execPath, ['bin/modelfactory.mjs', ...words.split(' '), '--help']);
        expect(help).toMatch(/Usage: modelfactory/);
      }),
    );
    const help = await execute(process.execPath, ['bin/modelfactory.mjs', 'keys', 'create', '--help']);
    for (const option of ['--tpm', '--scopes']) expect(help).toContain(option);
  });
});

/** Path of a Python in an environment of its own, made once; throws where python3, pip or its index is missing. */
async function pythonWithOpenAi(): Promise<string> {
  const folder = join(root, '.cache', 'test', 'python-openai');
  const python = join(folder, 'bin', 'python');
  const works = () => run(python, ['-c', 'import openai'], { timeout: 30_000 });
  try {
    await works();
  } catch {
    mkdirSync(dirname(folder), { recursive: true });
    await run('python3', ['-m', 'venv', '--clear', folder], { timeout: 60_000 });
    const quick = ['--quiet', '--disable-pip-version-check', '--retries', '1', '--timeout', '10'];
    await run(python, ['-m', 'pip', 'install', ...quick, 'openai'], { timeout: 90_000 });
    await works();
  }
  return python;
}
