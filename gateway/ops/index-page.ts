/** GET /: what this is and where to go on; no scripts. */
export const INDEX_HTML = `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>modelfactory</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 40rem; margin: 4rem auto; padding: 0 1rem; color: #1a1a1a; background: #fff }
a { color: #0b57d0 } code { background: #f2f2f2; padding: .1em .3em; border-radius: 3px }
@media (prefers-color-scheme: dark) { body { color: #e8e8e8; background: #161616 } a { color: #8ab4f8 } code { background: #2a2a2a } }
</style>
</head>
<body>
<main>
<h1>modelfactory</h1>
<p>Many LoRA adapters over one base model, behind the OpenAI API, with a verifiable receipt for every answer.</p>
<p>Point any OpenAI client at <code>/v1</code> on this address, with a key made by <code>modelfactory keys create</code>.</p>
<ul>
<li><a href="/openapi.json">API description (OpenAPI 3.1)</a></li>
<li><a href="/health">Health</a></li>
<li><a href="/log/checkpoint">Receipt log: latest checkpoint</a></li>
<li><a href="/log/vkey">Receipt log: verifier key</a></li>
</ul>
</main>
</body>
</html>
`;
