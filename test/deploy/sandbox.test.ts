import { expect, it } from "vitest";
import { renderCompose } from "../../src/deploy/compose.js";
import { renderKubernetes } from "../../src/deploy/kubernetes/render.js";
import { renderSystemd } from "../../src/deploy/systemd/render.js";
import { CONTAINERS, configured, KUBERNETES } from "./render.js";

it("a sandbox that needs namespaces is refused where the deployment forbids them", () => {
  const { config, given } = configured({ COPILOTFLEET_PROVIDER_TYPE: "echo" });
  const loaded = { config: { ...config, sandbox: { ...config.sandbox, mode: "bwrap" as "auto" } }, given };
  const refused = {
    code: "FLEET_CONFIG_INVALID",
    message: expect.stringMatching(/^sandbox\.mode is "bwrap", .* forbids/),
  };
  const units = { command: "/usr/local/bin/copilotfleet", user: "copilotfleet" };
  expect(() => renderSystemd(loaded, units)).toThrow(expect.objectContaining(refused));
  expect(() => renderCompose(loaded, CONTAINERS)).toThrow(expect.objectContaining(refused));
  expect(() => renderKubernetes(loaded, KUBERNETES)).toThrow(expect.objectContaining(refused));
  expect(() => renderKubernetes(loaded, { ...KUBERNETES, runtimeClass: "kata" })).not.toThrow();
});
