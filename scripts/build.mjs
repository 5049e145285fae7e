// Builds dist/: the command line as one script with a code cache (start-up time is a feature), the library as one ESM
// module with its type declarations, and the oclif manifest that lets a command start without reading the others.
import { execFile } from "node:child_process";
import { copyFile, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { build } from "esbuild";

const root = fileURLToPath(new URL("..", import.meta.url));
const run = promisify(execFile);

/**
 * Imported at run time, and only when a command needs them: the SDK is resolved beside its native runtime, metrics and log
 * are for `serve` alone, and the Redis client is for those who have one.
 */
const AT_RUN_TIME = ["@github/copilot-sdk", "prom-client", "pino", "ioredis"];

/** Required by the parts of the script that are loaded when `deploy` asks for them. */
const FOR_DEPLOY = ["yaml"];

/**
 * `@oclif/core` requires all of its parts at once, help and plug-in discovery included: a good part of a short
 * command's time. TypeScript emits each require as `const name_1 = require("x")` and every use as `name_1.y`, so each
 * can be turned into a getter that loads on first use.
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

/** Debug output of oclif costs 3 ms to prepare even when nobody asked for it: it is loaded if `DEBUG` is set. */
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
    entryPoints: ["src/index.ts"],
    outdir: "dist",
    format: "esm",
    splitting: true,
    packages: "external",
  });
}

async function buildCommandLine() {
  const files = (await readdir(`${root}/src/commands`, { recursive: true })).filter((file) => file.endsWith(".ts"));
  // A folder is a topic: commands/store/migrate.ts is "copilotfleet store migrate", with the id "store:migrate".
  const commands = files.map((file) => file.slice(0, -3).replaceAll("\\", "/"));
  const getters = commands.map(
    (path) =>
      `get ${JSON.stringify(path.replaceAll("/", ":"))}() { return require("./commands/${path}.ts").default; },`,
  );
  await build({
    ...shared,
    stdin: {
      contents: `export { main } from "./main.ts"; export const COMMANDS = { ${getters.join("\n")} };`,
      resolveDir: `${root}/src`,
    },
    outfile: "dist/cli.cjs",
    format: "cjs",
    // `NODE_OPTIONS=--enable-source-maps` gives readable stack traces.
    minify: true,
    define: { "import.meta.url": "__importMetaUrl" },
    // typescript and ejs are optional parts of oclif that an installed command never uses.
    external: [...AT_RUN_TIME, ...FOR_DEPLOY, "typescript", "ejs"],
    plugins: [lazyOclif, debugOnDemand],
  });
  // A script that comes out of the code cache has no dynamic import of its own: the loader hands it one.
  let source = await readFile(`${root}/dist/cli.cjs`, "utf8");
  for (const name of AT_RUN_TIME) source = source.replaceAll(`import("${name}")`, `__import("${name}")`);
  // The loader reads ASCII. The bundler escapes everything else already, except inside of regular expressions.
  source = source.replace(/[^\0-\x7f]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`);
  await writeFile(`${root}/dist/cli.cjs`, source);
  await copyFile(`${root}/scripts/cli-loader.mjs`, `${root}/dist/cli.js`);
}

/** Written by oclif itself, from the commands just built. */
async function writeManifest() {
  const { Plugin } = await import("@oclif/core");
  const plugin = new Plugin({ root, ignoreManifest: true, errorOnManifestCreate: true, respectNoCacheDefault: true });
  await rm(`${root}/oclif.manifest.json`, { force: true });
  await plugin.load();
  await writeFile(`${root}/oclif.manifest.json`, `${JSON.stringify(plugin.manifest, null, 2)}\n`);
}

/** Fills the code cache with what a short command really runs: made after it ran, in a process of its own. */
async function writeCodeCache() {
  const state = await mkdtemp(join(tmpdir(), "copilotfleet-build-"));
  const warm = `
    import { writeFileSync } from "node:fs";
    import { main, script } from "./dist/cli.js";
    await main(["ps"]);
    await main(["ps", "--json"]);
    writeFileSync("dist/cli.cjs.cache", script.createCachedData());`;
  const env = { ...process.env, COPILOTFLEET_HOME: state };
  await run(process.execPath, ["--input-type=module", "-e", warm], { cwd: root, env });
  await rm(state, { recursive: true });
}

await rm(`${root}/dist`, { recursive: true, force: true });
const declarations = run("npx", ["--no-install", "tsc", "-p", "tsconfig.build.json"], { cwd: root });
await buildLibrary();
await buildCommandLine();
await writeManifest();
await writeCodeCache();
await declarations.catch(({ stdout }) => {
  process.stderr.write(stdout);
  process.exitCode = 1;
});
