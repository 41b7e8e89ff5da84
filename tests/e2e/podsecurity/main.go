// Podsecurity judges pods by Kubernetes' own Pod Security admission.
//
//	podsecurity LEVEL < pods.json
//
// Reads a JSON list of {"metadata", "spec"}, judges each at the latest version of LEVEL, and prints a JSON
// list with the reasons against each; an empty string where there are none.
package main

import (
	"encoding/json"
	"log"
	"os"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

func main() {
	level, err := api.ParseLevel(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	var pods []corev1.PodTemplateSpec
	if err := json.NewDecoder(os.Stdin).Decode(&pods); err != nil {
		log.Fatal(err)
	}
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		log.Fatal(err)
	}
	reasons := []string{}
	for _, pod := range pods {
		strictest := api.LevelVersion{Level: level, Version: api.LatestVersion()}
		result := policy.AggregateCheckResults(evaluator.EvaluatePod(strictest, &pod.ObjectMeta, &pod.Spec))
		reasons = append(reasons, result.ForbiddenDetail())
	}
	json.NewEncoder(os.Stdout).Encode(reasons)
}
