import { describe, expect, it } from "vitest";
import { testFleet } from "../fixtures/commands/cli.js";

const fleet = testFleet({}, { portCount: 3 });

describe("spawn --count with too few ports", () => {
  it("spawn --count with too few ports starts as many servers as it can, and names each that it could not start", async () => {
    const error = await fleet.refusal(6, ["spawn", "--user", "many", "--count", "5"]);
    expect(error.code).toBe("FLEET_PORTS_EXHAUSTED");
    expect(error.message).toMatch(/^2 of 5 servers could not be started\. The others run\. many-\d: .* many-\d: /);
    const { servers } = await fleet.json<{ servers: { state: string }[] }>(["ps"]);
    expect(servers.filter(({ state }) => state === "ready")).toHaveLength(3);
  });
});
