import { spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, realpathSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it, onTestFinished } from "vitest";
import { tryLauncher, trySetpriv } from "../../src/sandbox/landlock.js";
import { serverPaths } from "../../src/sandbox/paths.js";
import { removeFolder } from "../fixtures/remove-folder.js";

it.each([
  ["the launcher", tryLauncher],
  ["setpriv", trySetpriv],
])("a program under %s reaches the granted files and folders, and nothing beside them", async (_, attempt) => {
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
});
