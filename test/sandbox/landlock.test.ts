import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, realpathSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { launcherAlone, tryLauncher, trySetpriv } from "../../src/sandbox/landlock.js";
import { serverPaths } from "../../src/sandbox/paths.js";
import { removeFolder } from "../fixtures/remove-folder.js";

const isRoot = process.getuid?.() === 0;

it.each([{ by: "the launcher", attempt: tryLauncher }, ...(isRoot ? [] : [{ by: "setpriv", attempt: trySetpriv }])])(
  "a program under $by reaches the granted files and folders, and nothing beside them",
  async ({ attempt }) => {
    const mechanism = await attempt();
    if ("why" in mechanism) throw new Error(mechanism.why);
    const folder = realpathSync(mkdtempSync(join(tmpdir(), "copilotfleet-landlock-")));
    onTestFinished(() => removeFolder(folder));
    const [home, tools, notes, secret] = ["home", "tools", "notes", "secret"].map((name) => join(folder, name)) as [
      string,
      string,
      string,
      string,
    ];
    for (const path of [home, tools]) mkdirSync(path);
    for (const path of [notes, secret, join(tools, "tool")]) writeFileSync(path, "text");
    const paths = serverPaths({ hidden: [], runtimePath: "/bin/sh", own: [home], read: [tools], write: [notes] });
    const succeeds = (script: string) => {
      const [program, ...args] = mechanism.wrap(["/bin/sh", "-c", script], paths);
      return spawnSync(program, args).status === 0;
    };
    const tried = {
      writesHome: succeeds(`echo x > '${home}/new' && rm '${home}/new' && mkdir '${home}/folder'`),
      writesFile: succeeds(`echo x > '${notes}'`),
      readsTools: succeeds(`cat '${tools}/tool' > /dev/null`),
      writesTools: succeeds(`echo x > '${tools}/tool'`),
      readsSecret: succeeds(`cat '${secret}'`),
      writesSecret: succeeds(`echo x > '${secret}'`),
      listsFolder: succeeds(`ls '${folder}'`),
    };
    expect(tried).toEqual({
      writesHome: true,
      writesFile: true,
      readsTools: true,
      writesTools: false,
      readsSecret: false,
      writesSecret: false,
      listsFolder: false,
    });
  },
);

it.skipIf(!isRoot)(
  "Landlock alone is not offered to root, because root could change the modes of all files",
  async () => {
    const why = "Landlock alone cannot restrict root (run the fleet as an ordinary user, or install bubblewrap)";
    expect(launcherAlone(await tryLauncher())).toEqual({ why });
    expect(await trySetpriv()).toEqual({ why });
  },
);
