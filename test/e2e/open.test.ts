import { chmodSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { testFleet } from "../fixtures/commands/cli.js";
import { eventually } from "../fixtures/eventually.js";
import { serve } from "../fixtures/fleets/serve.js";
import { ask } from "../http/harness.js";

const fleet = testFleet();
const FROM_PAGE = { "Sec-Fetch-Site": "same-origin" };

/** Creates a program in place of `xdg-open` that writes its arguments to the file `opened`. */
function fakeBrowser(exit = 0): { env: NodeJS.ProcessEnv; opened: string } {
  const opened = join(fleet.folder, "opened");
  const program = join(fleet.folder, "xdg-open");
  writeFileSync(program, `#!/bin/sh\nprintf %s "$*" > ${opened}\nexit ${exit}\n`);
  chmodSync(program, 0o755);
  return { env: { DISPLAY: ":0", PATH: `${fleet.folder}:${process.env.PATH}` }, opened };
}

describe("open", () => {
  it("open exits with 7 and names the next step if serve does not run, or runs without an HTTP API", async () => {
    const nobody = await fleet.run(["open", "--user", "alice"]);
    expect({ code: nobody.code, stdout: nobody.stdout }).toEqual({ code: 7, stdout: "" });
    expect(nobody.stderr).toContain("serve does not run on this host");
    expect(nobody.stderr).toContain("copilotfleet serve --http 127.0.0.1:4380");
    const serving = await serve(fleet);
    const closed = await fleet.run(["open", "--user", "alice"]);
    expect(closed.code).toBe(7);
    expect(closed.stderr).toContain("serve runs on this host without serve.http");
    await serving.end();
  });

  it("open prints the console's address with a code that signs in once, or opens it in the browser", async () => {
    const serving = await serve(fleet, { args: ["--http", "127.0.0.1:0"] });
    const { http } = await serving.logged("serving");
    const { stdout, stderr } = await fleet.run(["open", "--user", "alice", "--scope", "read"]);
    expect(stderr).toBe("");
    const [, url = "", code = ""] = /^(http:\S+)\/#code=(cft_\S+)\n$/.exec(stdout) ?? [];
    expect(url).toBe(http);
    const body = { code, user: "alice" };
    const signedIn = await ask(url, "POST", "/console/session", { body, headers: FROM_PAGE });
    expect(signedIn.status).toBe(200);
    const Cookie = String(signedIn.headers["set-cookie"]).split(";")[0] ?? "";
    const headers = { ...FROM_PAGE, Cookie, "X-Copilotfleet-Console": signedIn.json.key };
    expect((await ask(url, "GET", "/v1/me", { headers })).json).toMatchObject({ user: "alice", scopes: ["read"] });
    expect((await ask(url, "POST", "/console/session", { body, headers: FROM_PAGE })).status).toBe(401);

    const shown = await fleet.json(["open", "--user", "bob"]);
    const expected = { user: "bob", scopes: ["use"], sessionId: null, opened: false, expiresAt: expect.any(String) };
    expect(shown).toMatchObject({ ...expected, url: expect.stringContaining(`${http}/#code=cft_`) });

    const { env, opened } = fakeBrowser();
    const browsed = await fleet.run(["open", "--user", "alice"], { env, ownProcess: true });
    expect(browsed.stdout).toBe("The browser opens the console for alice.\n");
    await eventually("the browser", () => readFileSync(opened, "utf8") !== "");
    const file = readFileSync(opened, "utf8");
    expect(file).toMatch(/\/console\.html$/);
    expect(readFileSync(file, "utf8")).toContain(`url=${http}/#code=cft_`);
    expect(statSync(file).mode & 0o777).toBe(0o600);
    const printed = await fleet.run(["open", "--user", "alice", "--print"], { env, ownProcess: true });
    expect(printed.stdout).toContain("/#code=cft_");
    const failed = await fleet.run(["open", "--user", "alice"], { env: fakeBrowser(3).env, ownProcess: true });
    expect(failed.stdout).toContain("/#code=cft_");
    await serving.end();
  });
});
