import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { parse } from "yaml";
import type { PartialConfig } from "../../src/config/load/load.js";
import { renderCompose } from "../../src/deploy/compose.js";
import { renderKubernetes } from "../../src/deploy/kubernetes.js";
import { renderSystemd } from "../../src/deploy/systemd.js";
import { commented, inCompose, inYaml } from "../../src/deploy/template.js";
import { CONTAINERS, configured, find, KUBERNETES, validate } from "./render.js";

const FOLDER = fileURLToPath(new URL("../../deploy/", import.meta.url));
const UNITS = { command: "/usr/local/bin/copilotfleet", user: "copilotfleet" };
/** Values that break out of quotes, of a line, of a comment, of a block or of a template. */
const HOSTILE = [
  'a"\n      - {name: EVIL, value: "1"}\n#',
  "a\u2028evil: 1\u2029\u0085evil: 1",
  "{{image}}{{{secret}}}{{>weakened.txt}}",
  // biome-ignore lint/suspicious/noTemplateCurlyInString: an attack on Compose
  "\\\" ': # & * ! | > % @ ` ${EVIL} $(EVIL) %d",
  "\x7f\ufeff\u{1f600}\tend",
  "on",
  "---\nkind: Evil",
];

describe("hostile values in the files of deploy", () => {
  it.each(HOSTILE)("%j stays one value of a YAML text, also as Compose reads it", (value) => {
    for (const version of ["1.1", "1.2"] as const) {
      expect(parse(`a: "${inYaml(value)}"\nb: 1`, { version })).toEqual({ a: value, b: 1 });
      const { a } = parse(`a: "${inCompose(value)}"`, { version }) as { a: string };
      expect(a.replaceAll("$$", "$")).toBe(value);
      expect(a.replaceAll("$$", "")).not.toContain("$");
    }
  });

  const settings = (value: string): PartialConfig => ({
    provider: { type: "echo" },
    auth: { githubToken: { command: value } },
    runtime: { args: [value] },
  });

  it.each(HOSTILE)("%j in the configuration stays in config.json and in its variable", (value) => {
    const loaded = configured({}, settings(value));
    const { manifests } = renderKubernetes(loaded, KUBERNETES) as { manifests: { kind: string }[] };
    for (const manifest of manifests) validate(manifest);
    expect(manifests.map(({ kind }) => kind)).not.toContain("Evil");
    const config = JSON.parse(String(find(manifests, "ConfigMap").data?.["config.json"])) as object;
    expect(config).toMatchObject({ auth: { githubToken: { command: value } }, runtime: { args: [value] } });
    if (value.includes(",")) return;
    const { compose } = renderCompose(loaded, CONTAINERS);
    expect(Object.keys(compose)).toEqual(["name", "services", "volumes"]);
    expect(compose.services).toMatchObject({
      "host-1": {
        environment: { COPILOTFLEET_AUTH_GITHUB_TOKEN: JSON.stringify({ command: value }).replaceAll("$", "$$$$") },
      },
    });
    const { files } = renderSystemd(loaded, UNITS);
    expect(JSON.parse(files.at(-1)?.content ?? "")).toMatchObject(settings(value));
  });

  it.each(["a\nExecStartPre=/bin/evil", "a\r[Service]", "a\tb"])(
    "a shared folder with the name %j is refused, because a unit file cannot contain it",
    (name) => {
      const env = { COPILOTFLEET_PROVIDER_TYPE: "echo", COPILOTFLEET_STORE: "redis://127.0.0.1:6379/0" };
      const loaded = configured(env, { storage: { shared: `/mnt/${name}` } });
      expect(() => renderSystemd(loaded, UNITS)).toThrow(/control character, which cannot be in a unit file/);
    },
  );

  it("a notice of any length has a # before each of its lines", () => {
    const text = commented(["a".repeat(500), `${"b ".repeat(200)}${"c".repeat(300)} evil: 1`, ""]);
    for (const line of text.trimEnd().split("\n")) expect(line).toMatch(/^#/);
  });

  it("each placeholder for a text is inside double quotes in the YAML templates", () => {
    const files = readdirSync(FOLDER, { recursive: true, encoding: "utf8" }).filter((file) => file.endsWith(".yaml"));
    expect(files.length).toBeGreaterThan(3);
    const bare = files.flatMap((file) => [
      ...readFileSync(join(FOLDER, file), "utf8")
        .replace(/"[^"\n]*"/g, "")
        .matchAll(/\{\{\{?[\w.]+\}?\}\}/g),
    ]);
    // Numbers, names that the command makes itself, and names of variables, which the configuration checks.
    expect([...new Set(bare.map(([tag]) => tag))].sort()).toEqual(
      ["{{.}}", "{{graceSeconds}}", "{{host}}", "{{maxReplicas}}", "{{memoryMib}}", "{{processes}}", "{{replicas}}"]
        .concat(["{{variable}}", "{{verb}}", "{{{.}}}", "{{{reference}}}"])
        .sort(),
    );
  });
});
