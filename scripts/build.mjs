// Builds dist/: the command line as one script with a code cache for a fast start, the library as an ESM module with
// type declarations, the program of the proxy, the console, and the oclif manifest. With the manifest, a command starts
// without reading the other commands.
import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { build } from "esbuild";
import { buildConsole } from "./build-console.mjs";

const root = fileURLToPath(new URL("..", import.meta.url));
const run = promisify(execFile);

/**
 * These packages are imported at run time, when a command needs them. The SDK has to be resolved next to its native
 * runtime. Only `serve` needs metrics and the log. Only fleets with a Redis store need the Redis client. Only a chat
 * needs the parser of Markdown. Only front doors that accept JSON Web Tokens need "jose".
 */
const AT_RUN_TIME = ["@github/copilot-sdk", "prom-client", "pino", "ioredis", "marked", "jose"];

/** The script requires these packages only when a command needs `deploy` or the HTTP API. */
const REQUIRED_BY_PARTS = ["yaml", "mustache", "hono", "@hono/node-server"];

/**
 * Makes `@oclif/core` load its parts on first use. It normally requires all of them at once, including help and plug-in
 * discovery, and this takes a large part of a short command's time. TypeScript emits each require as
 * `const name_1 = require("x")` and each use as `name_1.y`, so we can replace each require with a getter.
 */
const lazyOclif = {
  name: "lazy-oclif",
  setup(builder) {
    builder.onLoad({ namespace: "file", filter: /@oclif[\\/]core[\\/]lib[\\/].*\.js$/ }, async ({ path }) => {
      const source = await readFile(path, "utf8");
      const requires = [];
      let contents = source.replace(
        /^const (\w+_\d+) = ((?:__importDefault|__importStar)\()?require\((["'][^"']+["'])\)(\))?;$/gm,
        (_, name, wrapper = "", id, close = "") => {
          requires.push({ name, expression: `${wrapper}require(${id})${close}` });
          return "";
        },
      );
      for (const { name } of requires) contents = contents.replace(new RegExp(`\\b${name}\\b`, "g"), `(${name}())`);
      const getters = requires.map(
        ({ name, expression }) => `let ${name}_loaded; const ${name} = () => (${name}_loaded ??= ${expression});`,
      );
      contents = contents.replace(/\bimport\((?!["'])/g, "__import(");
      // Sorting command ids in a language's order loads a collator, which takes 6 ms.
      contents = contents.replace(/(\w+\.id)\.localeCompare\((\w+\.id)\)/g, "($1 < $2 ? -1 : Number($1 > $2))");
      return { contents: contents.replace(/^("use strict";)?/, `$1${getters.join("")}`), loader: "js" };
    });
  },
};

/** Loads oclif's debug output only if `DEBUG` is set, because preparing it takes 3 ms. */
const debugOnDemand = {
  name: "debug-on-demand",
  setup(builder) {
    builder.onResolve({ filter: /^debug$/ }, ({ importer, namespace }) =>
      namespace === "debug" || !importer.includes("oclif") ? undefined : { path: importer, namespace: "debug" },
    );
    builder.onLoad({ filter: /.*/, namespace: "debug" }, ({ path }) => ({
      contents:
        'module.exports = process.env.DEBUG ? require("debug") : () => Object.assign(() => {}, { extend: module.exports });',
      resolveDir: dirname(path),
    }));
  },
};

const shared = {
  absWorkingDir: root,
  bundle: true,
  platform: "node",
  target: "node20",
  legalComments: "linked",
  sourcemap: "linked",
  sourcesContent: false,
};

async function buildLibrary() {
  await build({
    ...shared,
    // Do not shorten names, so that stack traces are readable. A source map would not help, because the package does
    // not contain the sources.
    minifyWhitespace: true,
    sourcemap: false,
    entryPoints: ["src/index.ts"],
    outdir: "dist",
    format: "esm",
    splitting: true,
    packages: "external",
  });
}

/** Builds the program of the servers' proxy, which runs as a separate process. */
async function buildProxy() {
  await build({
    ...shared,
    minifyWhitespace: true,
    sourcemap: false,
    entryPoints: ["src/sandbox/network/process.ts"],
    outfile: "dist/egress.js",
    format: "esm",
    packages: "external",
  });
}

async function buildCommandLine() {
  const files = (await readdir(`${root}/src/cli/commands`, { recursive: true })).filter((file) => file.endsWith(".ts"));
  // A folder is a topic: cli/commands/store/migrate.ts is "copilotfleet store migrate" and has the id "store:migrate".
  const commands = files.map((file) => file.slice(0, -3).replaceAll("\\", "/"));
  const getters = commands.map(
    (path) =>
      `get ${JSON.stringify(path.replaceAll("/", ":"))}() { return require("./cli/commands/${path}.ts").default; },`,
  );
  await build({
    ...shared,
    stdin: {
      contents: `export { main } from "./main.ts"; export const COMMANDS = { ${getters.join("\n")} };`,
      resolveDir: `${root}/src`,
    },
    outfile: "dist/cli.cjs",
    format: "cjs",
    // With `NODE_OPTIONS=--enable-source-maps`, stack traces are still readable.
    minify: true,
    define: { "import.meta.url": "__importMetaUrl" },
    // The other build of this package loads its parts by a function, which the bundler does not recognize.
    alias: { "jsonc-parser": `${root}/node_modules/jsonc-parser/lib/esm/main.js` },
    // typescript and ejs are optional dependencies of oclif that an installed command never uses.
    external: [...AT_RUN_TIME, ...REQUIRED_BY_PARTS, "typescript", "ejs"],
    plugins: [lazyOclif, debugOnDemand],
  });
  // Dynamic import does not work in a script from the code cache, so the loader passes an import function to it.
  let source = await readFile(`${root}/dist/cli.cjs`, "utf8");
  // Importing ioredis takes 16 ms longer than requiring it.
  for (const name of ["ioredis", "yaml"])
    source = source.replaceAll(`import("${name}")`, `Promise.resolve(require("${name}"))`);
  for (const name of AT_RUN_TIME) source = source.replaceAll(`import("${name}")`, `__import("${name}")`);
  // The loader reads ASCII. The bundler escapes all other characters, except in regular expressions. Escape those here.
  source = source.replace(/[^\0-\x7f]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
  await writeFile(`${root}/dist/cli.cjs`, source);
  const digest = createHash("sha256").update(source).digest("hex").slice(0, 8);
  const loader = await readFile(`${root}/scripts/cli-loader.mjs`, "utf8");
  await writeFile(`${root}/dist/cli.js`, loader.replace(".BUILD-", `.${digest}-`));
}

/** Lets oclif write the manifest of the commands that were just built. */
async function writeManifest() {
  const { Plugin } = await import("@oclif/core");
  const plugin = new Plugin({ root, ignoreManifest: true, errorOnManifestCreate: true, respectNoCacheDefault: true });
  await rm(`${root}/oclif.manifest.json`, { force: true });
  await plugin.load();
  await writeFile(`${root}/oclif.manifest.json`, `${JSON.stringify(plugin.manifest, null, 2)}\n`);
}

/** Runs short commands in a separate process. At its end, the loader writes the code that they use to the cache. */
async function writeCodeCache() {
  const state = await mkdtemp(join(tmpdir(), "copilotfleet-build-"));
  const warm = `
    import { main } from "./dist/cli.js";
    await main(["ps"]);
    await main(["ps", "--json"]);
    await main(["autocomplete", "bash", "--", "copilotfleet describe "]);`;
  const env = { ...process.env, COPILOTFLEET_HOME: state };
  await run(process.execPath, ["--input-type=module", "-e", warm], { cwd: root, env });
  await rm(state, { recursive: true });
}

/** Removes type declarations that no public declaration refers to. They are a twelfth of the package. */
async function pruneDeclarations() {
  const reached = new Set();
  const visit = async (file) => {
    if (reached.has(file) || !existsSync(file)) return;
    reached.add(file);
    for (const [, to] of (await readFile(file, "utf8")).matchAll(/(?:from|import\()\s*"(\.[^"]+)\.js"/g))
      await visit(join(dirname(file), `${to}.d.ts`));
  };
  await visit(join(root, "dist", "index.d.ts"));
  const files = (await readdir(`${root}/dist`, { recursive: true })).map((name) => join(root, "dist", name));
  await Promise.all(files.filter((file) => file.endsWith(".d.ts") && !reached.has(file)).map((file) => rm(file)));
}

await rm(`${root}/dist`, { recursive: true, force: true });
// `npm run check` checks the types, which takes longer than everything else here.
const declarations = run("npx", ["--no-install", "tsc", "-p", "tsconfig.build.json", "--noCheck"], { cwd: root });
await buildLibrary();
await buildProxy();
await buildConsole();
await buildCommandLine();
await writeManifest();
await writeCodeCache();
await declarations.then(pruneDeclarations, ({ stdout }) => {
  process.stderr.write(stdout);
  process.exitCode = 1;
});
