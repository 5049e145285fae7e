import { readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";
import { eventually } from "../fixtures/eventually.js";
import { DoorFleet } from "./harness.js";
import { RawClient } from "./raw-client.js";

it.skipIf(process.platform !== "linux")(
  "a server and its agent's programs have the score 500, above that of serve",
  async () => {
    await using at = await DoorFleet.open({ config: { session: { host: "owner" } } });
    const client = await RawClient.as(at.url, await at.token("alice"));
    await client.requestOk("session.create", { sessionId: "s" });
    const { pid, home } = await at.serverOf("alice");
    expect(readFileSync(`/proc/${pid}/oom_score_adj`, "utf8")).toBe("500\n");
    const out = join(home, "score");
    await client.requestOk("session.shell.exec", { sessionId: "s", command: `cat /proc/self/oom_score_adj > ${out}` });
    const written = () => {
      try {
        return readFileSync(out, "utf8") || false;
      } catch {
        return false; // not yet
      }
    };
    expect(await eventually("the score", written)).toBe("500\n");
    expect(Number(readFileSync("/proc/self/oom_score_adj", "utf8"))).toBeLessThan(500);
  },
);
